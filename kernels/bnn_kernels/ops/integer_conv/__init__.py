"""Convolutions and linear layers of several bits by products of levels: bytes, or 16-bit numbers."""
