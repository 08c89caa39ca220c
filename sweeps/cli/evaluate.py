"""`mms evaluate`: how good samples are, and where a network holds the time."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import pandas as pd

from meanmode.sweeps.cli.options import CommaList, json_option, show_json
from meanmode.sweeps.cli.sample import subject_options


@click.command()
@subject_options
@click.option(
    "--samples",
    type=click.IntRange(min=3),
    default=500,
    show_default=True,
    help="Of the network, and real ones beside them.",
)
@click.option(
    "--reference",
    type=click.IntRange(min=3),
    default=5000,
    show_default=True,
    help="Training images that all are compared with, at most.",
)
@click.option("--untrained", is_flag=True, help="Judge the same network with fresh weights too.")
@click.option(
    "--extractor",
    default="effnet-lite0",
    show_default=True,
    metavar="NETWORK",
    help="What reads the images: effnet-lite0, or inception:PATH, the TorchScript file of the FID Inception.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("features"),
    show_default=True,
    help="Folder of features of real images that were computed before.",
)
@click.option(
    "--probe",
    type=click.Choice(["timestep"]),
    help="Instead: how well a linear probe of every block's state decodes the time (App. H).",
)
@click.option(
    "--blocks", type=CommaList(int), help="States that --probe reads, 0 for the input.  [default: all]"
)
@json_option
def evaluate(
    path: Path,
    steps: int,
    cfg_scale: float,
    time_shift: float,
    seed: int,
    batch: int,
    device: str,
    ema: bool,
    samples: int,
    reference: int,
    untrained: bool,
    extractor: str,
    cache: Path,
    probe: str | None,
    blocks: tuple[int, ...] | None,
    as_json: bool,
) -> None:
    """FID, KID and IS of samples of a network that was trained on a latent store.

    Beside them the same of real images that were held out (what perfect samples would have), and of these
    encoded and decoded (what perfect latents would have). The names say extractor, count, steps and guidance:
    only numbers that share them compare.
    """
    from tqdm import tqdm

    from meanmode.dit.evaluate.sampling import SamplingConfig
    from meanmode.dit.evaluate.subject import open_subject
    from meanmode.sim.store.provenance import provenance
    from meanmode.sweeps.cli.options import check_device

    check_device(device)
    if probe is None and blocks is not None:
        raise click.UsageError("--blocks are those of --probe timestep: give that too")
    if probe is not None and untrained:
        raise click.UsageError("--probe reads the untrained network in any case: leave --untrained out")
    sampling = SamplingConfig(
        each=1, steps=steps, cfg_scale=cfg_scale, time_shift=time_shift, seed=seed, batch=batch
    )

    def tell(sentence: str) -> None:
        tqdm.write(f"mms: {sentence}", file=sys.stderr)  # on a line of its own, not behind a bar

    if path.is_file():
        raise ValueError(
            f"{path} is a file of weights, without the data to judge them by: name a run or a checkpoint"
        )
    subject = open_subject(path, ema=ema, damaged=tell)
    subject.network.to(device)
    if probe is None:
        found = _metrics(
            subject, sampling, samples, reference, untrained, extractor, device=device, cache=cache, tell=tell
        )
    else:
        found = _probed(subject, samples, seed, blocks, batch)
    if as_json:
        show_json({**found, **subject.document, **provenance()})
        return
    click.echo(f"{subject.name}; {found['said']}")
    table = pd.DataFrame(found["rows"])
    click.echo(table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"))


def _metrics(
    subject: Any,
    sampling: Any,
    samples: int,
    reference: int,
    untrained: bool,
    spec: str,
    **given: Any,
) -> dict[str, Any]:
    from tqdm import tqdm

    from meanmode.dit.evaluate.evaluation import EvaluationConfig, reference_images, steps_of
    from meanmode.dit.evaluate.evaluation import evaluate as judge
    from meanmode.dit.evaluate.features import extractor

    config = EvaluationConfig(samples=samples, reference=reference, untrained=untrained)
    network = extractor(spec, device=given.pop("device"))
    total = steps_of(config, sampling)
    with tqdm(total=total, desc="steps", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        rows = judge(subject, network, config, sampling, step_done=bar.update, **given)
    compared = len(reference_images(subject, config))
    return {
        "said": f"against {compared} training images",
        "reference_images": compared,
        "rows": [dataclasses.asdict(row) for row in rows],
        "evaluation": dataclasses.asdict(config),
        "sampling": dataclasses.asdict(sampling),
        "extractor": network.document(),
    }


def _probed(
    subject: Any, images: int, seed: int, blocks: tuple[int, ...] | None, batch: int
) -> dict[str, Any]:
    from tqdm import tqdm

    from meanmode.dit.evaluate.evaluation import untrained_network
    from meanmode.dit.evaluate.timestep_probe import TIMES_EACH, probe_timestep

    networks = {"trained": subject.network, "untrained": untrained_network(subject)}
    rows: list[dict[str, Any]] = []
    total = len(networks) * -(-images * TIMES_EACH // batch)
    with tqdm(total=total, desc="batches", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        for name, network in networks.items():
            probe = probe_timestep(
                network,
                subject.source,
                images=images,
                seed=seed,
                blocks=blocks,
                batch=batch,
                step_done=bar.update,
            )
            document = probe.document()
            rows += [{"network": name, **row} for row in document.pop("rows")]
    said = (
        f"t decoded from {document['images']} images at {document['times_each']} times each, "
        f"{document['held_out']} images held out of the regression"
    )
    return {"said": said, "rows": rows, "probe": document}
