"""Datasets for training and evaluating the prior: folders of renders, and dataparsers for them."""
