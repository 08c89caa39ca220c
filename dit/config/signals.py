"""Names of the gradient signals that an ensemble records."""

SIGNALS = ("g_mean", "g_ctr", "grad_rms_q", "grad_rms_k")
"""What is measured of the gradients of the watched blocks, where that is asked for."""
