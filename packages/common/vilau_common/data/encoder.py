"""What a part supplies to the loader: how stored samples become training examples, and examples a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Sample = TypeVar("Sample")
Row = TypeVar("Row")
Batch = TypeVar("Batch")


class BadSample(Exception):
    """A sample that cannot be used. The loader skips it, counts it and logs it with this reason."""


class SampleEncoder(ABC, Generic[Sample, Row, Batch]):
    """Turns stored samples into batches; runs in the loader's worker processes, hence picklable.

    `encode` makes a `Sample` of each stored sample, and `split` perhaps several of it. With a packing buffer,
    `select_packs` and `pack` then make `Row`s of several samples; without one, a row is a sample. `collate` makes
    a batch of `batch_size` rows. Each must depend on its arguments alone: a resumed run calls them again and
    expects the same.
    """

    @abstractmethod
    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Sample:
        """Encode one sample of a source.

        `form` is the source's. `rng` is this sample's own and the same in a resumed run; it is valid during
        the call only. Raises BadSample.
        """

    def split(self, sample: Sample) -> Sequence[Sample]:
        """The samples, at least one, that take the place of an encoded one, such as the parts of a long text."""
        return (sample,)

    def select_packs(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Arrange the packing buffer in packs: lists of indices into `samples`, each index exactly once."""
        raise NotImplementedError(f"{type(self).__name__} does not pack; set packing_buffer to 0")

    def pack(self, samples: Sequence[Sample]) -> Row:
        """Make one row of the samples of a pack."""
        raise NotImplementedError(f"{type(self).__name__} does not pack; set packing_buffer to 0")

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Make a batch, a dict or dataclass of CPU tensors, of `batch_size` rows.

        A dataclass needs a `pin_memory` method to be pinned where there is an accelerator.
        """
