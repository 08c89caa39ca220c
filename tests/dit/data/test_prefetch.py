"""Prefetching: each batch is made once, ahead and in order, and errors are raised where it is taken."""

import threading

import pytest

from meanmode.dit.data.prefetch import AHEAD, Prefetch


def counting(last: int = 10):
    """A prefetcher of squares that records the keys it makes and the threads it uses."""
    made: list[int] = []
    threads: set[int] = set()

    def make(key: int) -> int:
        made.append(key)
        threads.add(threading.get_ident())
        if key == 5:
            raise ValueError("five")
        return key * key

    return Prefetch(make, lambda key: None if key >= last else key + 1), made, threads


def test_each_is_made_once_ahead_and_in_order() -> None:
    batches, made, threads = counting(4)
    assert [batches.take(key) for key in range(1, 5)] == [1, 4, 9, 16]
    batches.close()
    assert made == [1, 2, 3, 4] and threading.get_ident() not in threads


def test_the_stated_number_is_made_ahead() -> None:
    batches, made, _ = counting()
    batches.take(1)
    batches._pending[1 + AHEAD].result()
    assert made == list(range(1, 2 + AHEAD))
    batches.close()


def test_what_is_no_longer_wanted_is_dropped() -> None:
    batches, _, _ = counting(100)
    batches.take(20)
    assert batches.take(7) == 49 and set(batches._pending) == {8, 9}
    batches.close()


def test_an_error_is_raised_by_the_step_that_needs_the_batch() -> None:
    batches, _, _ = counting()
    assert batches.take(3) == 9 and batches.take(4) == 16
    with pytest.raises(ValueError, match="five"):
        batches.take(5)
    batches.close()


def test_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.5, 20.0, 20.0])
    monkeypatch.setattr("meanmode.dit.data.prefetch.time.perf_counter", lambda: next(clock))
    batches, _, _ = counting()
    batches.take(1)
    assert batches.waited == 3.5
    batches.take(2)
    assert batches.waited == 0
    batches.close()
