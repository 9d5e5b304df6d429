"""Work done ahead in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vilau_common.data.ahead import ITEMS_AHEAD, done_ahead


def test_results_come_in_order_and_are_made_in_threads() -> None:
    def slow(number: int) -> tuple[int, int]:
        time.sleep(0.002 * (number % 3))
        return number * number, threading.get_ident()

    results = list(done_ahead(slow, range(40), 3))
    assert [square for square, _ in results] == [number * number for number in range(40)]
    assert threading.get_ident() not in {thread for _, thread in results}


def test_items_are_read_only_a_little_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = done_ahead(lambda number: number, items(), 2)
    for expected in range(5):
        assert next(results) == expected
        assert len(read) <= expected + 2 * ITEMS_AHEAD + 2


def test_an_error_comes_in_its_place() -> None:
    results = done_ahead(lambda number: 1 // number, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
