"""Laying out the store of a sweep: its cells, what is measured, provenance, and the forecast."""

import dataclasses
import json
from pathlib import Path

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import create_sweep, open_group
from meanmode.sweeps.engine.plan import Plan, digest
from meanmode.theory.setting import Setting


def lay_out(plan: Plan, path: Path) -> None:
    """Create the store of a plan, forecast included.

    Raises:
        StoreExistsError: the path is taken, or another process has laid it out meanwhile.
        StoreError: the file system refused a write.
    """
    if path.exists():
        raise StoreExistsError(f"{path} already exists: pass --resume to go on with it, or another --out")
    layout, configuration = plan.layout(), plan.configuration()
    create_sweep(
        path,
        coordinates=plan.coordinates(),
        sizes=layout.sizes,
        variables=layout.variables,
        forecasts=layout.forecasts,
        attributes={
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
    """Refuse to go on with a store that holds another plan.

    Raises:
        StoreError: naming the first difference.
    """
    stored = json.loads(str(open_group(path, "r").attrs["configuration"]))
    asked = json.loads(json.dumps(plan.configuration()))
    try:
        # fields that were added since have their defaults
        if "model" in stored["base"]:
            stored["base"] = RunConfig.of_document(stored["base"]).document()
        else:
            stored["base"] = dataclasses.asdict(Setting(**stored["base"]))
    except (TypeError, KeyError, ValueError) as error:
        raise StoreError(f"{path} was written by another version: {error}") from error
    for part in dict.fromkeys([*asked, *stored]):
        here, wanted = stored.get(part, False), asked.get(part, False)
        if json.dumps(here) != json.dumps(wanted):
            raise StoreError(f"{path} holds another sweep: its {part} is {here}, asked for {wanted}")
