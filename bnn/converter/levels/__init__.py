"""Levels of quantizers: tables of their values, thresholds found by bisection, and checks of their planes."""
