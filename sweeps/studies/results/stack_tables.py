"""Generated tables of sweeps over synthetic stacks: fronts, profiles, token exponents."""

from pathlib import Path

from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.markdown import exponent_text, front_table, profile_table
from meanmode.sweeps.studies.results.sizes import captioned, stacks_caption, store


def fronts(data: Path, *names: str) -> str:
    """Predicted and measured fronts of sweeps, one line per setting."""
    table = front_table(compare([store(data, name) for name in names]))
    statistics = (
        "Predicted: mean +- standard deviation over seeds. Measured: mean over seeds +- its standard "
        "error; z in "
        "standard errors; error = (predicted - measured) / measured; spread ratio = predicted / measured "
        "standard deviation."
    )
    return captioned(table, stacks_caption(data, names), statistics)


def profiles(data: Path, name: str) -> str:
    """Profiles of TCS and amplification of a sweep, predicted and measured."""
    table = profile_table(compare([store(data, name)]))
    statistics = (
        "TCS rms: root mean square over blocks of predicted minus measured TCS. A: largest value before the "
        "front, measured mean over seeds +- standard error; worst block: largest relative error before the "
        "front."
    )
    return captioned(table, stacks_caption(data, [name]), statistics)


def exponents(data: Path, name: str, distance: str = "1") -> str:
    """The token exponent of the amplification, predicted against measured."""
    found = exponent_text(compare([store(data, name)]), int(distance))
    text = (
        f"Exponent of A - 1 in T, attention writer, {distance} block(s) from the loss, predicted against "
        f"measured: {found}."
    )
    return captioned(text, stacks_caption(data, [name]))
