"""Train the cells of one unit of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.signals import AVERAGED, SIGNALS
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Measured
from meanmode.sweeps.engine.study_variables import KINDS, SERIES
from meanmode.theory.setting import Setting

if TYPE_CHECKING:
    from meanmode.dit.train.ensemble_measurements import Measured as MeasuredRun


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCell:
    """One training run of a study."""

    run: RunConfig
    seed: int

    @property
    def setting(self) -> Setting:
        """Setting of the stack."""
        return self.run.model.setting(self.run.training.batch)

    @property
    def passes(self) -> int:
        """Largest number of forward and backward passes."""
        return self.run.training.steps


def trained(
    cells: Sequence[tuple[int, StudyCell]], *, functional_every: int, signals_every: int, device: str
) -> Measured:
    """Outcome and series of the runs of one ensemble."""
    from meanmode.dit.train.ensemble_runs import train_runs

    found: Measured = []
    for measured in train_runs(
        [cell.run for _, cell in cells],
        functional_every=functional_every,
        signals_every=signals_every,
        device=device,
    ):
        averaged = AVERAGED if cells[0][1].run.training.ema else ()
        found.append((stored(measured, (*(SIGNALS if signals_every else ()), *averaged)), DONE))
    return found


def stored(measured: "MeasuredRun", names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The variables `OUTCOME` and `SERIES` of a run, and its series of these names."""
    series, onset = measured.series, measured.onset
    rates = series["rate"].values
    return {
        **{name: series[name].values for name in (*SERIES, *names)},
        "onset_step": np.array(np.nan if onset.step is None else onset.step),
        "onset_kind": np.array(KINDS.index(onset.kind)),
        "critical_rate": np.array(rates[onset.step - 1] if onset.kind == "mean_mode" else np.nan),
        "last_step": np.array(len(rates)),
        "last_rate": np.array(rates[np.isfinite(rates)][-1]),
    }
