"""A progress bar on stderr that appears once work has begun and disappears when it is closed."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

QUIET_SECONDS = 1.0
"""Outside a terminal, where a bar cannot be wiped, it waits this long: most errors are found by then."""


class ProgressBar:
    """A progress bar that leaves stderr alone until the first report of progress.

    Args:
        label: text in front of the bar.
        unit: name of a unit of work.
        total: number of units, if it is known before the work begins.
    """

    def __init__(self, label: str, unit: str, total: int | None = None) -> None:
        self._label, self._unit, self._total = label, unit, total
        self._bar: tqdm[Any] | None = None

    def reached(self, done: int, total: int | None = None) -> None:
        """Show the number of finished units."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total if total is None else total,
                desc=self._label,
                unit=self._unit,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=False,
                delay=0 if sys.stderr.isatty() else QUIET_SECONDS,
            )
        self._bar.update(done - self._bar.n)

    def advance(self) -> None:
        """Show that one more unit is done."""
        self.reached(1 if self._bar is None else int(self._bar.n) + 1)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
