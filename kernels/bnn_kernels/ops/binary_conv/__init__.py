"""Convolutions and linear layers on bit planes, by population counts or table lookups."""
