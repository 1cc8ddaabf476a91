"""Depthwise convolutions, and others whose groups have few channels and filters: lanes are channels of all groups."""
