"""Runs of runs, and uses of finished ones."""
