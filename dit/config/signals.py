"""The gradient signals that an ensemble of training runs can record."""

SIGNALS = ("g_mean", "g_ctr", "grad_rms_q", "grad_rms_k")
"""Observables of the gradients in the watched blocks, measured only on request."""
