"""Parts of `python -m eschernet_prior.train`: recipe, batches and networks."""
