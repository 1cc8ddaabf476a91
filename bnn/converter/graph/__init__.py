"""The typed graph that rules build: values, what builds them, and what they are in numbers."""
