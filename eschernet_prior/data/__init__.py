"""Dataparsers for photos and renders, and the datasets on which the prior is trained and evaluated."""
