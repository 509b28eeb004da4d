"""Parts of `python -m style_nerf2nerf.sweep`: plan, jobs and report."""
