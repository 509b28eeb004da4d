"""Generate the missing views of a sparse capture with the prior."""
