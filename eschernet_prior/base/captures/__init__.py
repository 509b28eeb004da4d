"""Captures: what their files hold, the check of them before a run, and how their pictures are read."""
