"""The signals that an ensemble of training runs records only on request."""

SIGNALS = ("g_mean", "g_ctr", "grad_rms_q", "grad_rms_k")
"""Observables of the gradients in the watched blocks, measured only on request."""


AVERAGED = ("average_loss", "average_tcs")
"""Loss and TCS (median over deep blocks) of the moving averages of the weights, of runs that keep these."""
