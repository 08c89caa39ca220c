"""`mms predict`: predictions of the theory."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from meanmode.sweeps.cli.options import (
    json_option,
    preset_run,
    settings_option,
    show_json,
    show_table,
    stack_options,
)
from meanmode.theory.setting import INPUTS, Setting

EXPONENTS = ("cosine", "forward", "backward_mean", "backward_centered")
"""What `mms predict exponents` shows of a fixed point."""


@click.group()
def predict() -> None:
    """Predict the front, a profile, exponents, the onset, or the risk of a schedule."""


@predict.command("front")
@stack_options(lists=False)
@click.option(
    "--from",
    "run",
    metavar="RUN|CHECKPOINT",
    type=click.Path(path_type=Path),
    help="A trained network in place of an untrained stack: the front from its current weights, which takes "
    "the place of all options above.",
)
@click.option("--step", type=click.IntRange(min=0), help="Step of the state of RUN.  [default: all states]")
@json_option
@click.pass_context
def predict_front_command(
    context: click.Context, run: Path | None, step: int | None, as_json: bool, **options: Any
) -> None:
    """Predict the collapse front of an untrained stack, with its spread between seeds.

    --input may also name a .npy file of tokens, a row for each of --tokens and of text. With structure in the
    input, the cosines of all pairs of tokens are followed, up to the last block of --depth.

    With --from, predict that of a RUN of mms train from the weights of its checkpoints, beside the front
    measured on fresh samples of its data.
    """
    if run is not None:
        _refuse_given(context, options, "--from brings its own network")
        _predict_trained(run, step, as_json)
        return
    if step is not None:
        raise click.UsageError("--step is a state of a run: name the run with --from")
    from meanmode.theory.meanfield.coverage import ALL_PAIRS, coverage
    from meanmode.theory.meanfield.predicted_front import predict_front

    source = options["input"]
    given = source not in INPUTS
    setting = Setting(**options | ({"input": "gaussian"} if given else {}))
    if given and setting.input_cosine:
        raise ValueError(
            f"the tokens of {source} bring their own cosines: leave out --input-cosine, got "
            f"{setting.input_cosine}"
        )
    cosines = _cosines_of(source, setting) if given else None
    prediction = predict_front(setting, cosines=cosines)
    inputs = dataclasses.asdict(setting) | {"input": source}
    covered = coverage(setting, ALL_PAIRS if given else None)
    if as_json:
        show_json(
            {
                "front": prediction.front,
                "front_std": prediction.front_std,
                "front_deterministic": prediction.front_deterministic,
                "coverage": dataclasses.asdict(covered),
                "inputs": inputs,
            }
        )
        return
    if prediction.front is None:
        within = f" within {setting.depth} blocks" if covered.recursion == ALL_PAIRS else ""
        click.echo(f"no collapse front is predicted{within}")
    else:
        beyond = (
            f" (beyond the {setting.depth} blocks of the stack)" if prediction.front > setting.depth else ""
        )
        place = f"{prediction.front:.1f} +- {prediction.front_std:.1f} between seeds"
        click.echo(f"collapse front at block {place}{beyond}")
    click.echo("; ".join([f"by the recursion of {covered.recursion}", *covered.words()]))


def _refuse_given(context: click.Context, options: Mapping[str, Any], why: str) -> None:
    """Refuse options of a stack that were given although something else takes their place."""
    given = [name for name in options if context.get_parameter_source(name) != ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{why}: leave out --{given[0].replace('_', '-')}")


def _predict_trained(run: Path, step: int | None, as_json: bool) -> None:
    """The fronts of the states of a run, from their weights and measured."""
    from meanmode.dit.evaluate.dynamic_fronts import front_rows
    from meanmode.dit.evaluate.run_states import states_of

    states = states_of(run)
    if step is not None:
        states = states.at([range(step, step + 1)])
    states.check(ema=False)
    rows = front_rows(states)
    if as_json:
        show_json({"run": str(run), "depth": states.run.model.depth, "rows": rows})
        return
    for row in rows:
        seen = "none measured" if row["measured"] is None else f"measured at block {row['measured']:.1f}"
        said = "no front within the network is predicted"
        if row["front"] is not None:
            said = f"collapse front at block {row['front']:.1f} +- {row['front_std']:.1f} predicted"
        click.echo(f"step {row['step']}: {said}, {seen}")


def _cosines_of(source: str, setting: Setting) -> Any:
    """Cosines of the tokens of a .npy file."""
    import numpy as np

    from meanmode.theory.meanfield.coverage import MOST_TOKENS
    from meanmode.theory.meanfield.structured_inputs import token_cosines

    try:
        given = np.load(Path(source), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"--input is one of {', '.join(INPUTS)} or a .npy file of tokens, got {source!r}"
        ) from error
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
        raise ValueError(f"{source} must hold one array of real numbers, a row per token")
    tokens = sum(setting.segments)
    if len(np.atleast_1d(given)) != tokens:
        raise ValueError(
            f"{source} holds an array of shape {given.shape}, where the options ask for {tokens} "
            "rows, one per token"
        )
    if tokens > MOST_TOKENS:
        raise ValueError(f"all pairs are followed up to {MOST_TOKENS} tokens, got {tokens} of {source}")
    return token_cosines(given)


@predict.command("profile")
@stack_options(lists=False)
@json_option
def predict_profile_command(as_json: bool, **options: Any) -> None:
    """Predict observables block by block: TCS, rho, adjoint cosine and amplification of both writers."""
    from meanmode.theory.meanfield.profile import predict_profile

    setting = Setting(**options)
    profile = predict_profile(setting)
    amplification, adjoint = profile["amplification"], profile["c_delta"]
    blocks = {
        "tcs": profile["tcs"].tolist(),
        "rho": profile["rho"].tolist(),
        "c_delta": adjoint.tolist(),
        "amplification_attn": amplification[:, 0].tolist(),
        "amplification_ffn": amplification[:, 1].tolist(),
    }
    if as_json:
        show_json({**blocks, "inputs": dataclasses.asdict(setting)})
        return
    rows = [
        {
            "block": block + 1,
            "tcs": blocks["tcs"][block + 1],
            "rho": blocks["rho"][block + 1],
            "c_delta_attn": adjoint[block, 0],
            "c_delta_ffn": adjoint[block, 1],
            "amplification_attn": amplification[block, 0],
            "amplification_ffn": amplification[block, 1],
        }
        for block in range(setting.depth)
    ]
    if rows:
        show_table(rows)


@predict.command("exponents")
@stack_options(lists=False)
@click.option("--sweep", "name", help="Write the exponents of every setting of a named sweep, to --out.")
@click.option("--out", type=click.Path(path_type=Path), help="Forecast of --sweep; never overwritten.")
@json_option
@click.pass_context
def predict_exponents_command(
    context: click.Context, name: str | None, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Predict how fast token distances and adjoints grow per block, at every fixed point of the pair cosine.

    Natural logarithms of energies, for many tokens and features: forward of the distance to the fixed point,
    backward of the mean and the centered part of the adjoint. The entropy is that of an attention row.
    """
    if (name is None) != (out is None):
        raise ValueError(
            "--sweep and --out go together: give both, or neither for the setting of the options"
        )
    if name is not None and out is not None:
        _refuse_given(context, options, "--sweep brings its own settings")
        _write_exponents(name, out)
        return
    from meanmode.sweeps.studies.rows import finite
    from meanmode.theory.meanfield.exponents import exponents
    from meanmode.theory.meanfield.phase_diagram import BlockMap
    from meanmode.theory.meanfield.softmax_moments import row_entropy

    setting = Setting(**options)
    block, tokens = BlockMap(setting), setting.tokens + setting.text_tokens
    rows = []
    for point in block.fixed_points():
        if point.multiplier == math.inf:  # the merge removes the mean
            continue
        found = exponents(block, point.cosine)
        rows.append({name: getattr(found, name) for name in EXPONENTS})
        if setting.mixer == "softmax":
            rows[-1]["row_entropy"] = row_entropy(tokens, 1 - point.cosine, setting.head_width)
    if as_json:
        show_json({"fixed_points": [finite(row) for row in rows], "inputs": dataclasses.asdict(setting)})
        return
    show_table(rows)


def _write_exponents(name: str, out: Path) -> None:
    from meanmode.sweeps.engine.sweep import Sweep
    from meanmode.sweeps.named.all_sweeps import named_sweep
    from meanmode.sweeps.studies.exponents.stack_exponents import forecast
    from meanmode.sweeps.studies.forecast_files import write_forecast

    sweep = named_sweep(name)
    if not isinstance(sweep, Sweep):
        raise ValueError(f"exponents are those of untrained stacks, and {name} trains: name another --sweep")
    write_forecast(forecast(sweep), out)


@predict.command("onset")
@click.argument("study")
@click.option(
    "--from",
    "sources",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Store of a measured study; may be given several times.",
)
@click.option(
    "--pilots",
    type=click.Path(path_type=Path),
    help="Store of the first steps of every case, from which the law then takes its gains.",
)
@click.option(
    "--law",
    type=click.Choice(["O2", "hazard"]),
    default="O2",
    show_default=True,
    help="Law that makes the forecast: the threshold of law O2, or a hazard (law O3) fitted to runs at "
    "constant rates.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write the forecast to, once.")
@click.option("--note", default="", help="What was known when the forecast was written.")
@json_option
def predict_onset_command(
    study: str,
    sources: tuple[Path, ...],
    pilots: Path | None,
    law: str,
    out: Path | None,
    note: str,
    as_json: bool,
) -> None:
    """Forecast the critical rate of every case of a STUDY from measured studies, with the rivals of law O1.

    STUDY is the name of a study, or the store of a study of your own. Write the forecast before the runs:
    mms sweep run STUDY --forecast FILE. For a study of waiting times, forecast the share of runs that
    collapse and the half rates, from measured ramps and waiting times; mms waiting reads such a forecast as
    STUDY.forecast.json in its --forecasts folder.

    With --law hazard, --from names measured ramps and waiting times, and the forecast of any schedule has the
    median, the interval of a single run and the chance of a collapse by the last step, beside the other laws.
    """
    import datetime

    from meanmode.sweeps.cli.statements import open_stated
    from meanmode.sweeps.named.all_sweeps import SWEEPS, named_study
    from meanmode.sweeps.studies.critical_rate_forecast import forecast_document
    from meanmode.sweeps.studies.forecast_files import write_forecast
    from meanmode.sweeps.studies.half_rate_forecast import half_rate_document
    from meanmode.sweeps.studies.hazards.hazard_forecast import hazard_document

    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    written = f"{today}; {note}".rstrip("; ")
    own = study not in SWEEPS and Path(study).exists()
    asked = open_stated(Path(study)).study if own else named_study(study)
    if asked.constant_rate and pilots is not None:
        raise ValueError(f"{study} is of runs at constant rates: its forecast takes no --pilots")
    if law == "hazard" and pilots is not None:
        raise ValueError("a hazard takes no --pilots: it speaks of the setting that it was fitted to")
    measured = [open_stated(source) for source in sources]
    if law == "hazard":
        document = hazard_document(asked, measured, written=written)
    elif asked.constant_rate:
        document = half_rate_document(asked, measured, written=written)
    else:
        first_steps = None if pilots is None else open_stated(pilots)
        document = forecast_document(asked, measured, written=written, pilots=first_steps)
    if out is not None:
        write_forecast(document, out)
    if as_json:
        show_json(document)
    else:
        show_table(document["rows"])


@predict.command("schedule")
@click.argument("preset")
@settings_option
@click.option(
    "--from",
    "sources",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A forecast by a hazard; or, several times, stores of ramps and of waiting times, to which a hazard "
    "is fitted.",
)
@click.option(
    "--risk",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Accepted probability of a collapse by the last step.",
)
@json_option
def predict_schedule_command(
    preset: str, settings: tuple[str, ...], sources: tuple[Path, ...], risk: float, as_json: bool
) -> None:
    """Say how risky the learning-rate schedule of a run is, before it is run.

    The run is a PRESET with the fields of --set, as in mms train; depth, schedule, rate, warmup and steps
    matter here. The answers, by a hazard (law O3): the probability of a collapse by the last step, when it
    comes, the largest peak rate at the accepted --risk, and the probability against the peak rate. Another
    peak is the same schedule with all its rates multiplied by a factor. A ramp without a limit has no peak:
    the answer is its largest slope.

    The hazard is silent on runs that differ from the fitted ones in more than depth and schedule.
    """
    from meanmode.sweeps.cli.statements import open_hazard
    from meanmode.sweeps.studies.hazards.schedule_risk import risk_document, risk_lines

    run = preset_run(preset, settings)
    hazard, setting = open_hazard(sources)
    document = risk_document(hazard, setting, run, risk=risk)
    document["made_from"] = [str(source) for source in sources]
    if as_json:
        show_json(document)
        return
    for line in risk_lines(document):
        click.echo(line)
    show_table(document["curve"])
