"""Metrics of generated views and of shapes."""
