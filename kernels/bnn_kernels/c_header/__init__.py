"""Packed models as C99: one header without allocation and without dependencies, for devices that have no Python."""
