"""Captures: the checks of their files before a run, and a summary that identifies them."""
