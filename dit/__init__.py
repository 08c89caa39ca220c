"""The diffusion transformer: the trunk of `sim` with its ends, its data, training and evaluation."""
