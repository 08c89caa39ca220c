"""Batches made ahead of the steps that need them, in a thread beside the training."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


Made = TypeVar("Made")


AHEAD = 2
"""Batches that are made before they are asked for."""


class Prefetch(Generic[Key, Made]):
    """Makes what will be asked for next while what was asked for is used.

    What is made depends on its key alone, so that nothing changes but the time it takes.

    Args:
        make: the batch of a key.
        following: the key that will be asked for behind one; None behind the last.

    Attributes:
        waited: seconds that the last `take` waited.
    """

    def __init__(self, make: Callable[[Key], Made], following: Callable[[Key], Key | None]) -> None:
        self._make, self._following = make, following
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pending: dict[Key, Future[Made]] = {}
        self.waited = 0.0

    def take(self, key: Key) -> Made:
        """The batch of a key; what was made for others than it and those behind it is dropped.

        Raises:
            Exception: what making it has raised.
        """
        wanted: list[Key] = []
        behind: Key | None = key
        while behind is not None and len(wanted) <= AHEAD:
            wanted.append(behind)
            behind = self._following(behind)
        for other in self._pending.keys() - set(wanted):
            self._pending.pop(other).cancel()
        for coming in wanted:
            if coming not in self._pending:
                self._pending[coming] = self._pool.submit(self._make, coming)
        began = time.perf_counter()
        found = self._pending.pop(key).result()
        self.waited = time.perf_counter() - began
        return found

    def close(self) -> None:
        """Make nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
