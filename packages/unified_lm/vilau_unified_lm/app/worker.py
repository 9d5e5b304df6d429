"""One thread for the model's work, and what the work tells on its way as an iterator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Queue
from threading import Event
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _ReaderGone(Exception):
    """Raised in a work whose reader has left, to end it."""


class Worker:
    """Works one after the other, whoever asks: a model draws no faster for two at once, and its state is for one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def stream(self, work: Callable[[Callable[[Item], None]], Item]) -> Iterator[Item]:
        """What `work` tells through its argument, and last what it returns.

        A slow reader is given the newest. Where it leaves (`close`), the next telling ends the work. What the work
        raises is raised here.
        """
        told: Queue[_Told[Item]] = Queue()
        gone = Event()

        def tell(item: Item) -> None:
            if gone.is_set():
                raise _ReaderGone
            told.put(_Told(item))

        future: Future[Item] = self._thread.submit(work, tell)
        future.add_done_callback(lambda _: told.put(_Told(None)))
        try:
            while (item := _newest(told)) is not None:
                yield item
            yield future.result()
        finally:
            gone.set()
            future.cancel()  # where it has not begun


class _Told(Generic[Item]):
    """What was told; None: the end."""

    def __init__(self, item: Item | None) -> None:
        self.item = item


def _newest(told: Queue[_Told[Item]]) -> Item | None:
    """Waits for what is told next and skips what is older; the end only where nothing stands before it."""
    item = told.get().item
    while item is not None:
        try:
            later = told.get_nowait()
        except Empty:
            break
        if later.item is None:
            told.put(later)  # for the next call
            break
        item = later.item
    return item
