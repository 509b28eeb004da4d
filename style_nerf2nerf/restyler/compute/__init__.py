"""How the restyling networks run on a machine: memory, kernels, number types, batches and processes."""
