"""Command lines, each run as `python -m experiments.NAME`; nothing imports this package."""
