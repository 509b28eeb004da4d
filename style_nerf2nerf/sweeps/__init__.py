"""Parts of `python -m style_nerf2nerf.sweep`: its plan, the jobs that it starts, and the report that it ends with."""
