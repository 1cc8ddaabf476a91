"""Figures and tables, one script each, drawn from result files; nothing here trains."""
