"""One generated table over all studies: what prevents the collapse, in which regime, and what it costs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.store_kinds import kind_of, open_study
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import collapsed
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption
from meanmode.sweeps.studies.stock.alarm_scores import stock_rows
from meanmode.sweeps.studies.stock.backbone_rows import backbone_runs
from meanmode.sweeps.studies.training.failures import ramp_failures

UNCHANGED = ("plain", "nothing", "as built")
"""Labels of the case that a study compares the others with."""

SAME = {
    "mean of branches deleted": "no mean write",
    "MV-Split, alpha frozen at 0": "MV-Split, alpha frozen",
    "MV-Split, alpha learned from 0": "MV-Split",
    "LayerScale 0.01": "LayerScale",
    "LayerScale, .1": "LayerScale",
    "DeepNorm (2 L)^(1/4)": "DeepNorm",
    "highway L": "highway",
    **dict.fromkeys(UNCHANGED, "as it is"),
}
"""Label of a case -> the row that it shares with cases of other studies; others keep their label."""

DEEP = "12 blocks, "
"""Beginning of the labels of backbones at their full depth."""


def prevention(data: Path, *names: str) -> str:
    """Every remedy with what became of its runs in each study; controls are left out.

    Args:
        data: folder of the stores.
        names: studies of ramps, of jumps or of watched models, each with an unchanged case; a column each.
    """
    columns = {name: _column(store(data, name)) for name in names}
    remedies = dict.fromkeys(
        remedy for column in columns.values() for remedy in column if not remedy.startswith("control")
    )
    lines = [[remedy, *(columns[name].get(remedy, "") for name in names)] for remedy in remedies]
    table = pipe_table(("remedy", *(f"`{name}`" for name in names)), lines)
    statistics = (
        "Runs that collapse into the mean mode; of ramps also the critical rate over the unchanged one's "
        "(`>`: a lower bound) and the loss less the unchanged one's at the same step; of jumps the loss "
        "before them less the unchanged one's; of watched models the runs that learn, over all rates where "
        "there are several. `diverge`: plain "
        "divergences. Intervals are in the tables of each study."
    )
    return captioned(
        table, studies_caption(data, [n for n in names if _is_study(store(data, n))]), statistics
    )


def _is_study(path: Path) -> bool:
    return kind_of(open_cells(path).attrs) in (Study.kind, EventStudy.kind)


def _column(path: Path) -> Mapping[str, str]:
    """Remedy -> what became of its runs, from a store of any of the kinds."""
    return READERS[kind_of(open_cells(path).attrs)](path)


def _of_ramps(path: Path) -> dict[str, str]:
    data = open_study(path)
    baseline = next(label for label in data["case"].values.tolist() if label in UNCHANGED)
    found = {}
    for label, row in ramp_failures(data, baseline).items():
        said = [str(row["failures"])]
        ratio, loss = row.get("critical_rate_ratio"), row.get("loss")
        if ratio is not None and ratio["measured"] is not None:
            said.append(f"x{ratio['measured']:.2g}")
        elif ratio is not None and ratio["measured_at_least"]:
            said.append(f"> x{ratio['measured_at_least']:.2g}")
        if loss is not None and loss["difference"] is not None:
            said.append(f"loss {loss['difference']:+.2f}")
        found[_remedy(label)] = "; ".join(said)
    return found


def _of_jumps(path: Path) -> dict[str, str]:
    rows = event_rows(open_cells(path))
    before = rows.groupby("case", sort=False)["loss_before"].median()
    unchanged = next(float(before[label]) for label in before.index if label in UNCHANGED)
    found = {}
    for label, of in rows.groupby("case", sort=False):
        diverged = int((of["kind"] == "plain_divergence").sum())
        said = [f"{int(collapsed(of).sum())} of {len(of)}" + f", {diverged} diverge" * bool(diverged)]
        if label not in UNCHANGED:
            said.append(f"loss {before[label] - unchanged:+.2f}")
        found[_remedy(str(label))] = "; ".join(said)
    return found


def _of_models(path: Path) -> dict[str, str]:
    data = open_cells(path)
    if DEEP not in str(data["case"].values[-1]):
        return {
            _remedy(row["quantity"]): f"{row['failed']} of {row['runs']}; {row['learned']} learn"
            for row in stock_rows(data)[:-1]
        }
    found = {}
    for case, of in backbone_runs(data).groupby("case", sort=False):
        learned = int((of["kind"] == "learned").sum())
        found[_remedy(str(case))] = f"{int(of['mean_mode'].sum())} of {len(of)}; {learned} learn"
    return found


def _remedy(label: str) -> str:
    """The row of a case; studies of backbones name the depth in front of a remedy."""
    label = label.removeprefix(DEEP)
    return SAME.get(label, label)


READERS: Mapping[str, Callable[[Path], dict[str, str]]] = {
    Study.kind: _of_ramps,
    EventStudy.kind: _of_jumps,
    StockStudy.kind: _of_models,
}
"""Kind of store -> what is read out of it."""
