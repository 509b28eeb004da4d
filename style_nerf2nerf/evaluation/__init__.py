"""Metrics of restyled views and retrained fields."""
