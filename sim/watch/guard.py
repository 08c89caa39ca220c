"""Errors inside a watch are reported once, and the training that is watched goes on."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger("meanmode")


def say(message: str) -> None:
    """Warn without showing a line of code, since none is to blame; where warnings are errors, log instead."""
    try:
        warnings.warn_explicit(message, UserWarning, "meanmode", 0)
    except Warning:
        LOG.error(message)


class Guard:
    """Wraps callbacks so that they never raise; after the first error they do nothing.

    Attributes:
        failed: whether an error has occurred.
    """

    def __init__(self) -> None:
        self.failed = False

    def fail(self, error: Exception) -> None:
        """Report an error, once."""
        if not self.failed:
            self.failed = True
            LOG.debug("the watch stopped", exc_info=error)
            say(f"the watch stops, training goes on: {type(error).__name__}: {error}")

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The callback without errors: after one, it returns None."""

        def guarded(*args: Any, **options: Any) -> Any:
            return None if self.failed else self._attempt(work, args, options)

        return guarded

    def always(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a callback that must run even after an error."""

        def guarded(*args: Any, **options: Any) -> Any:
            return self._attempt(work, args, options)

        return guarded

    def _attempt(self, work: Callable[..., Any], args: Any, options: Any) -> Any:
        try:
            return work(*args, **options)
        except Exception as error:
            self.fail(error)
            return None
