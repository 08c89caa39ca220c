"""Kernels for a GPU: fused merges, norms of heads and gates, as operators of torch that Triton computes."""
