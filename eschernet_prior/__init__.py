"""EscherNet: a multi-view diffusion prior that turns N posed views of an object into M new ones."""
