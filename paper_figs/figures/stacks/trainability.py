"""The trainability diagram: where distances and adjoints grow, and how fast, over weights and gains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies
from meanmode.paper_figs.shared.style import COLOURS, DASHES, PAGE, plain_ticks
from meanmode.sweeps.studies.exponents.stack_exponents import exponent_rows, forecast_in
from meanmode.theory.meanfield.exponents import Exponents, exponents
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.softmax_moments import freezing_scale
from meanmode.theory.setting import Setting

STUDIES = ("trainability",)

SCALES = np.linspace(0.4, 1.6, 61)
"""Weight std times sqrt(width) at which the theory is evaluated."""


RATIOS = np.linspace(1, 10, 37)
"""FFN ratios at which it is evaluated, in quarters."""


GAINS = np.geomspace(0.2, 1.0, 33)
"""Write over skip of the merges with one gain."""


BACKWARD = (0.1, 0.3, 0.5)
"""Backward exponents whose lines are drawn."""


TOKENS = np.geomspace(4, 65536, 40).round()
HEADS = (16, 64, 2**20)
"""Head widths for which the freezing of attention rows is drawn; the last stands for the limit."""


Rows = Sequence[Mapping[str, Any]]
Array = NDArray[np.float64]


def draw(studies: Studies) -> Figure:
    """Planes over weight scale with FFN ratio and gain, exponents along one line, and the entropy axis.

    Args:
        studies: the sweep `trainability` with its forecast.
    """
    (data,) = studies.values()
    rows = exponent_rows(data, forecast_in(data))
    figure = Figure(figsize=(PAGE, 5.0), layout="constrained")
    (plane, gains), (along, entropy) = figure.subplots(2, 2)
    _draw_plane(plane, RATIOS, lambda scale, ratio: _limit(scale, ffn_ratio=ratio))
    _draw_plane(
        gains, GAINS, lambda scale, gain: _limit(scale, merge="layerscale", residual_gain=float(gain))
    )
    single = [{**row, "gain": _gain(row)} for row in rows if row["merge"] != "mv_split" and _collapsed(row)]
    _draw_signs(plane, [row for row in single if row["gain"] == 1], "ffn_ratio")
    _draw_signs(gains, [row for row in single if row["ffn_ratio"] == Setting().ffn_ratio], "gain")
    plane.set(ylabel="FFN ratio", title="plain merge")
    gains.set(ylabel="write over skip", title="FFN ratio 3: lambda of LayerScale, 1 / a of DeepNorm")
    _draw_along(
        along, [row for row in single if row["gain"] == 1 and row["ffn_ratio"] == Setting().ffn_ratio]
    )
    _draw_entropy(entropy)
    for panel in (plane, gains, along):
        panel.set_xlabel("weight std times sqrt(width)")
    handles, labels = plane.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    setting = Setting(**{name: value for name, value in rows[0].items() if name in Setting.__slots__})
    caption(
        figure,
        "Untrained stacks beside the collapsed state. Lines: theory for infinitely many tokens and features, "
        f"written down before; bars: its forecast for the measured size; points: measured, width "
        f"{setting.width}, {setting.tokens} tokens, {rows[0]['n']} seeds per setting, standard errors. "
        "Natural logarithms of energies per block.",
    )
    return figure


def _limit(scale: float, **fields: Any) -> Exponents:
    return exponents(BlockMap(Setting(weight_std=float(scale) / 16, **fields)))


def _collapsed(row: Mapping[str, Any]) -> bool:
    return bool(row["input_cosine"] > 0)


def _gain(row: Mapping[str, Any]) -> float:
    """Write over skip of a merge with one gain."""
    gain = float(row["residual_gain"])
    return 1 / gain if row["merge"] == "deepnorm" else gain


def _draw_plane(panel: Axes, heights: Array, limit: Callable[[float, float], Exponents]) -> None:
    """Area where the collapsed state is attracting, and lines of equal backward exponents."""
    found = [[limit(float(scale), float(height)) for scale in SCALES] for height in heights]
    forward = np.array([[of.forward for of in row] for row in found])
    backward = np.array([[of.backward_mean for of in row] for row in found])
    panel.contourf(SCALES, heights, forward, levels=(-np.inf, 0.0), colors="0.88")
    panel.contour(SCALES, heights, forward, levels=(0.0,), colors="black", linewidths=1.0)
    lines = panel.contour(
        SCALES, heights, backward, levels=BACKWARD, colors=COLOURS[2], linewidths=0.8, linestyles="--"
    )
    panel.clabel(lines, fmt="%g", fontsize=5.5)
    panel.fill_between([], [], color="0.88", label="the collapsed state attracts")
    panel.plot([], [], "--", color=COLOURS[2], lw=0.8, label="backward exponent of the mean")


def _draw_signs(panel: Axes, rows: Rows, name: str) -> None:
    """Settings, filled where the measured distance shrinks, open where it grows."""
    styles = ((True, COLOURS[1], "measured: shrinks"), (False, "white", "measured: grows"))
    for shrinks, face, label in styles:
        of = [row for row in rows if row["quantity"] == "forward" and (row["measured"] < 0) is shrinks]
        x, y = [row["scale"] for row in of], [row[name] for row in of]
        panel.plot(x, y, "o", color=COLOURS[1], mfc=face, label=label, zorder=4, clip_on=False)


def _draw_along(panel: Axes, rows: Rows) -> None:
    """Exponents over the weight scale, plain merge: lines, forecasts and points."""
    limits = [_limit(scale) for scale in SCALES]
    styles = (
        ("forward", "1 - c, forward", COLOURS[0], "o", "-", COLOURS[0], 3),
        ("backward_centered", "centered adjoint", COLOURS[3], "s", ":", "none", 5),
        ("backward_mean", "mean adjoint", COLOURS[2], "^", "--", COLOURS[2], 3),
    )
    for quantity, label, colour, marker, dash, face, size in styles:
        panel.plot(SCALES, [getattr(of, quantity) for of in limits], dash, color=colour)
        of = [row for row in rows if row["quantity"] == quantity]
        x, y = np.array([row["scale"] for row in of]), [row["measured"] for row in of]
        panel.errorbar(
            x, y, yerr=[row["sem"] for row in of], fmt=marker, color=colour, mfc=face, ms=size, label=label
        )
        panel.plot(x, [row["predicted"] for row in of], "_", color="black", ms=8, zorder=5)
    panel.axhline(0, color="0.6", lw=0.6)
    panel.set(ylabel="exponent per block", title="plain merge, FFN ratio 3", xlim=(SCALES[0], SCALES[-1]))
    panel.legend(loc="lower left")


def _draw_entropy(panel: Axes) -> None:
    """Factor on the scores at which attention rows freeze, against the tokens; QK-Norm fixes it at 1."""
    for width, dash in zip(HEADS, DASHES, strict=False):
        scales = [freezing_scale(int(count), 0.0, width) for count in TOKENS]
        label = f"head width {width}" if width < HEADS[-1] else "wide heads: sqrt(2 ln T)"
        panel.plot(TOKENS, scales, ls=dash, color=COLOURS[4], label=label)
    panel.axhline(1, color="black", lw=1.0)
    panel.annotate("QK-Norm without a gain", (TOKENS[-1], 1.05), ha="right", va="bottom")
    panel.set_xscale("log")
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    panel.set(
        xlabel="tokens T", ylabel="factor on the scores", title="where attention rows freeze, token cosine 0"
    )
    panel.legend(loc="upper left")
