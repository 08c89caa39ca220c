"""`mms evaluate`: judge the samples of a trained network, or probe where it represents time."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meanmode.dit.data.bounds import BOUNDS
from meanmode.sweeps.cli.options import CommaList, json_option, show_json
from meanmode.sweeps.cli.progress_bar import ProgressBar
from meanmode.sweeps.cli.sampling_options import SubjectOptions, subject_options, tell

if TYPE_CHECKING:
    from meanmode.dit.evaluate.evaluation import EvaluationConfig
    from meanmode.dit.evaluate.sampling import SamplingConfig
    from meanmode.dit.evaluate.subject import Subject


@click.command()
@subject_options
@click.option(
    "--samples",
    type=click.IntRange(*BOUNDS["samples"]),
    default=500,
    show_default=True,
    help="Number of samples, and of real images judged for comparison.",
)
@click.option(
    "--reference",
    type=click.IntRange(*BOUNDS["reference"]),
    default=5000,
    show_default=True,
    help="Largest number of training images that everything is compared with.",
)
@click.option("--untrained", is_flag=True, help="Also judge the same network with fresh weights.")
@click.option(
    "--extractor",
    default="effnet-lite0",
    show_default=True,
    metavar="NETWORK",
    help="Network that extracts features: effnet-lite0, or inception:PATH with the TorchScript file of the "
    "FID Inception network.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("features"),
    show_default=True,
    help="Folder that caches features of real images.",
)
@click.option(
    "--probe",
    type=click.Choice(["timestep"]),
    help="Measure instead how well a linear probe of each block's state decodes the time (App. H).",
)
@click.option(
    "--blocks",
    type=CommaList(int),
    help="States read by --probe, where 0 is the input.  [default: all]",
)
@json_option
def evaluate(
    options: SubjectOptions,
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

    For comparison the same metrics are computed for held-out real images (the score of perfect samples), and
    for these images after encoding and decoding (the score of perfect latents). The names of the metrics
    include extractor, number of images, steps and guidance: compare only numbers that share them.
    """
    from meanmode.dit.evaluate.evaluation import EvaluationConfig
    from meanmode.sim.store.destination import check_writable
    from meanmode.sim.store.provenance import provenance

    if probe is None and blocks is not None:
        raise click.UsageError("--blocks selects the states of a probe: add --probe timestep")
    if probe is not None and untrained:
        raise click.UsageError("--probe always includes the untrained network: leave out --untrained")
    sampling = options.sampling()
    if options.path.is_file():
        raise ValueError(
            f"{options.path} is a weight file, which has no data to compare with: give a run or a checkpoint"
        )
    if not cache.is_dir():
        check_writable(cache)
    subject = options.open()
    if probe is None:
        config = EvaluationConfig(samples=samples, reference=reference, untrained=untrained)
        found = _metrics(subject, config, sampling, extractor, options.device, cache)
    else:
        found = _probed(subject, samples, sampling, blocks)
    if as_json:
        show_json({**found, **subject.document, **provenance()})
        return
    import pandas as pd

    click.echo(f"{subject.name}; {found['said']}")
    table = pd.DataFrame(found["rows"])
    click.echo(table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"))


def _metrics(
    subject: "Subject",
    config: "EvaluationConfig",
    sampling: "SamplingConfig",
    spec: str,
    device: str,
    cache: Path,
) -> dict[str, Any]:
    """Rows and document of the image metrics."""
    from meanmode.dit.evaluate.evaluation import evaluate as judge
    from meanmode.dit.evaluate.evaluation import reference_images, steps_of
    from meanmode.dit.evaluate.features import extractor

    network = extractor(spec, device=device)
    with ProgressBar("steps", "step", steps_of(config, sampling)) as bar:
        rows = judge(subject, network, config, sampling, cache=cache, tell=tell, step_done=bar.advance)
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
    subject: "Subject", images: int, sampling: "SamplingConfig", blocks: tuple[int, ...] | None
) -> dict[str, Any]:
    """Rows and document of the timestep probe, for the trained and the untrained network."""
    from meanmode.dit.evaluate.evaluation import untrained_network
    from meanmode.dit.evaluate.timestep_probe import TIMES_EACH, probe_timestep

    assert subject.source is not None
    networks = {"trained": subject.network, "untrained": untrained_network(subject)}
    rows: list[dict[str, Any]] = []
    total = len(networks) * -(-images * TIMES_EACH // sampling.batch)
    with ProgressBar("batches", "batch", total) as bar:
        for name, network in networks.items():
            probe = probe_timestep(
                network,
                subject.source,
                images=images,
                seed=sampling.seed,
                blocks=blocks,
                batch=sampling.batch,
                step_done=bar.advance,
            )
            document = probe.document()
            rows += [{"network": name, **row} for row in document.pop("rows")]
    said = (
        f"t decoded from {document['images']} images at {document['times_each']} times each, "
        f"{document['held_out']} images held out of the regression"
    )
    return {"said": said, "rows": rows, "probe": document}
