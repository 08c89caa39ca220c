"""The variables in the store of a training study."""

from meanmode.sim.store.files import Variable

KINDS = ("none", "mean_mode", "plain_divergence")
"""Kinds of onset; the position is the code in a store."""


OUTCOME = {
    "onset_step": Variable(definition="first step of the collapse or divergence, NaN: none", units="step"),
    "onset_kind": Variable(definition=f"label: {', '.join(f'{i} {kind}' for i, kind in enumerate(KINDS))}"),
    "critical_rate": Variable(definition="learning rate at the onset of a collapse, NaN: no collapse"),
    "last_step": Variable(definition="last step whose loss was taken", units="step"),
    "last_rate": Variable(definition="learning rate of the last update"),
}


SERIES = {
    "loss": Variable(dims=("step",), definition="loss of the batch before the update"),
    "tcs_image": Variable(dims=("step",), definition="TCS of the image tokens, median over deep blocks"),
    "grad_norm": Variable(dims=("step",), definition="global gradient norm before clipping"),
    "functional_step": Variable(
        dims=("step",), definition="Delta, rms change of the last trunk by the update, same batch"
    ),
}


SIGNAL_SERIES = {
    "g_mean": Variable(dims=("step",), definition="G_mean, median over deep blocks and writers"),
    "g_ctr": Variable(dims=("step",), definition="G_ctr, median over deep blocks and writers"),
    "grad_rms_q": Variable(dims=("step",), definition="rms of the gradient of Q, median over deep blocks"),
    "grad_rms_k": Variable(dims=("step",), definition="rms of the gradient of K, median over deep blocks"),
}


AVERAGE_SERIES = {
    "average_loss": Variable(
        dims=("step",), definition="loss of the moving average of the weights on the batch, after the update"
    ),
    "average_tcs": Variable(
        dims=("step",),
        definition="TCS of the image tokens with the moving average of the weights, median over deep blocks",
    ),
}


TELEMETRY = (*SERIES, *SIGNAL_SERIES)
"""Series that a study may log, one value per step."""
