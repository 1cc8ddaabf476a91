"""Packed models: building, running, recording, saving and loading."""
