"""Creating the store of a plan: its cells, what is measured, provenance, and the forecast."""

import json
from pathlib import Path

from meanmode.sim.store.destination import check_writable
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import create_sweep, open_group
from meanmode.sweeps.engine.plan import Plan, digest
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.study import STATEMENT


def lay_out(plan: Plan, path: Path) -> None:
    """Create the store of a plan, forecast included.

    Raises:
        StoreExistsError: the path exists, or another process has created the store meanwhile.
        StoreError: the file system refused a write.
    """
    if path.exists():
        raise StoreExistsError(f"{path} already exists: pass --resume to continue it, or another --out")
    check_writable(path)
    layout, configuration = plan.layout(), plan.configuration()
    create_sweep(
        path,
        coordinates=plan.coordinates(),
        sizes=layout.sizes,
        variables=layout.variables,
        forecasts=layout.forecasts,
        attributes={
            "plan": plan.kind,
            "name": plan.name,
            "claim": plan.claim,
            "laws": json.dumps(plan.laws),
            "grid": plan.grid,
            "configuration": json.dumps(configuration),
            "configuration_hash": digest(configuration),
            "variables": json.dumps([*layout.variables, *layout.forecasts, "status"]),
            "witness": layout.witness,
            **provenance(),
        },
    )


def check_same(plan: Plan, path: Path) -> None:
    """Refuse to resume a store that holds another plan.

    A store that keeps none of a study's statement can be resumed: older versions did not write it.

    Raises:
        StoreError: naming the first difference.
    """
    attributes = dict(open_group(path, "r").attrs)
    written = json.loads(str(attributes["configuration"]))
    try:
        # fields that were added since take their defaults
        stored = {**written, **json.loads(json.dumps(stored_plan(attributes).configuration()))}
    except StoreError as error:
        raise StoreError(f"{path} was written by another version: {error}") from error
    asked = json.loads(json.dumps(plan.configuration()))
    for part in dict.fromkeys([*asked, *stored]):
        here, wanted = stored.get(part, False), asked.get(part, False)
        if part in STATEMENT and part not in stored:
            continue
        while isinstance(here, dict) and isinstance(wanted, dict) and here != wanted:
            name = next(key for key in (*here, *wanted) if here.get(key) != wanted.get(key))
            part, here, wanted = f"{part}.{name}", here.get(name), wanted.get(name)
        if json.dumps(here) != json.dumps(wanted):
            raise StoreError(f"{path} holds another sweep: its {part} is {here}, asked for {wanted}")
