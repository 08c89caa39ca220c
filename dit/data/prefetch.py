"""Prefetching: make batches in a background thread before training asks for them."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


Made = TypeVar("Made")


AHEAD = 2
"""Number of batches made ahead."""


class Prefetch(Generic[Key, Made]):
    """Make the next batches while the current one is in use.

    A batch depends only on its key, so prefetching changes nothing but the time taken.

    Args:
        make: makes the batch of a key.
        following: returns the key that will be requested after a given key; None after the last.

    Attributes:
        waited: seconds that the last call of `take` waited for its batch.
    """

    def __init__(self, make: Callable[[Key], Made], following: Callable[[Key], Key | None]) -> None:
        self._make, self._following = make, following
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pending: dict[Key, Future[Made]] = {}
        self.waited = 0.0

    def take(self, key: Key) -> Made:
        """Return the batch for `key`; drop prefetched batches that no longer follow it.

        Raises:
            Exception: whatever `make` raised for this key.
        """
        wanted: list[Key] = []
        after: Key | None = key
        while after is not None and len(wanted) <= AHEAD:
            wanted.append(after)
            after = self._following(after)
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
        """Stop prefetching and drop all pending batches."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
