"""Pictures beside their reconstructions: the first, the worst and the best of all, on one sheet each."""

from __future__ import annotations

import heapq
from pathlib import Path

from vilau_common.images import Picture, sheet, to_array
from vilau_vision_tower.evaluation.metric import EvaluatedBatch
from vilau_vision_tower.losses import psnr

COLUMNS = 8

Pair = tuple[Picture, Picture]


class Grids:
    """Keeps `count` pairs of each sort; worst and best by PSNR, the worst and the best first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.first: list[Pair] = []
        # (key, number, pair): the number settles ties, so that pictures are never compared.
        self._best: list[tuple[float, int, Pair]] = []
        self._worst: list[tuple[float, int, Pair]] = []
        self._seen = 0

    def update(self, batch: EvaluatedBatch) -> None:
        """Take a batch in."""
        for picture, reconstruction, ratio in zip(
            batch.pictures,
            to_array(batch.reconstructions),
            psnr(batch.images, batch.reconstructions).tolist(),
            strict=True,
        ):
            pair = (picture.image, reconstruction)
            self._seen += 1
            if len(self.first) < self.count:
                self.first.append(pair)
            _keep(self._best, (ratio, self._seen, pair), self.count)
            _keep(self._worst, (-ratio, self._seen, pair), self.count)

    def sheets(self) -> dict[str, list[Pair]]:
        """Name -> pairs: first, worst, best."""
        best, worst = (
            [pair for _, _, pair in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
            for kept in (self._best, self._worst)
        )
        return {"first": self.first, "worst": worst, "best": best}

    def save(self, directory: Path) -> None:
        """Write <name>.png for each sheet: a row of pictures, below it their reconstructions, and so on."""
        for name, pairs in self.sheets().items():
            rows: list[list[Picture]] = []
            for start in range(0, len(pairs), COLUMNS):
                some = pairs[start : start + COLUMNS]
                rows += [[picture for picture, _ in some], [again for _, again in some]]
            if rows:
                sheet(rows).save(directory / f"{name}.png")


def _keep(heap: list[tuple[float, int, Pair]], entry: tuple[float, int, Pair], count: int) -> None:
    """Put `entry` into a heap of the `count` largest."""
    if len(heap) < count:
        heapq.heappush(heap, entry)
    elif heap and entry[:2] > heap[0][:2]:
        heapq.heapreplace(heap, entry)
