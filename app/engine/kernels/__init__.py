"""Kernels over the paged KV cache; each has a plain torch twin in `reference`."""
