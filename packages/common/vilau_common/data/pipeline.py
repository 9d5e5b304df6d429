"""The stages of ours between Megatron-Energon's: encoding, packing, and the delivery of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic

import numpy as np
from megatron.energon import WorkerConfig
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.flavors.webdataset.sample_loader import RawSampleData
from megatron.energon.wrappers.base import BaseWrapperDataset
from megatron.energon.wrappers.packing_dataset import PackingDataset

from vilau_common.data.bad_samples import MAX_BAD_IN_A_ROW, BadSampleRecord, SampleReport
from vilau_common.data.encoder import BadSample, Batch, Row, Sample, SampleEncoder
from vilau_common.data.source import RawSample
from vilau_common.errors import UserError


class SampleRandom:
    """One random stream for each (seed, number): Philox keyed by the two.

    The generator is reused, as making one costs ten times what moving its key does.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def stream(self, seed: int, number: int) -> np.random.Generator:
        """The stream's generator, at its beginning; valid until the next call."""
        self._state["state"]["key"][:] = (seed, number)
        self._bits.state = self._state
        return self._generator


class EncodedSample(Generic[Sample]):
    """An encoder's sample with what energon restores its buffers by."""

    __slots__ = ("__restore_key__", "value")

    def __init__(self, value: Sample, restore_key: tuple[Any, ...]) -> None:
        self.value = value
        self.__restore_key__ = restore_key


class EncodeDataset(BaseWrapperDataset[RawSampleData, EncodedSample[Sample]], Generic[Sample, Row, Batch]):
    """Encodes the stream of a worker's samples and keeps the bad ones out, noting them in `report`."""

    _savable_fields = ("_number", "_unfinished")

    def __init__(
        self,
        dataset: SavableDataset[RawSampleData],
        encoder: SampleEncoder[Sample, Row, Batch],
        worker_config: WorkerConfig,
    ) -> None:
        super().__init__(dataset, worker_config=worker_config)
        self._encoder = encoder
        self._random = SampleRandom()
        self.report = SampleReport()
        self.reset_state_own()

    def reset_state_own(self) -> None:
        self._number = 0  # of the next sample in this worker's stream
        # Restore key of the sample before it and its next part, where not all of its parts were delivered.
        self._unfinished: tuple[tuple[Any, ...], int] | None = None

    def __iter__(self) -> Iterator[EncodedSample[Sample]]:
        seed = self.worker_config.worker_seed()
        if self._unfinished is not None:
            key, part = self._unfinished
            raw = self.dataset.restore_sample(key).data[0]
            yield from self._parts(self._encode(raw, seed, self._number - 1), self._number - 1, key, part)
        bad_in_a_row = 0
        for raw_data in self.dataset:
            raw = raw_data.data[0]
            number = self._number
            self._number += 1
            self.report.seen += 1
            try:
                value = self._encode(raw, seed, number)
            except BadSample as error:
                record = BadSampleRecord(raw.shard, raw.key, str(error))
                self.report.bad.append(record)
                bad_in_a_row += 1
                if bad_in_a_row >= MAX_BAD_IN_A_ROW:
                    raise UserError(f"{bad_in_a_row:,} samples in a row are bad, such as {record}") from None
                continue
            bad_in_a_row = 0
            yield from self._parts(value, number, raw_data.__restore_key__)

    def _parts(
        self, value: Sample, number: int, key: tuple[Any, ...], first: int = 0
    ) -> Iterator[EncodedSample[Sample]]:
        """What the encoder splits an encoded sample into, from part `first` on."""
        parts = self._encoder.split(value)
        for part in range(first, len(parts)):
            self._unfinished = (key, part + 1) if part + 1 < len(parts) else None
            yield EncodedSample(parts[part], ("EncodeDataset", number, part, *key))

    def _encode(self, raw: RawSample, seed: int, number: int) -> Sample:
        if raw.error is not None:
            raise BadSample(raw.error)
        return self._encoder.encode(raw.key, raw.fields, raw.form, self._random.stream(seed, number))

    def restore_sample(self, restore_key: tuple[Any, ...]) -> EncodedSample[Sample]:
        """Encode again what stood in a buffer; it was good and has been counted before."""
        _, number, part, *inner = restore_key
        raw: RawSample = self.dataset.restore_sample(tuple(inner)).data[0]
        value = self._encode(raw, self.worker_config.worker_seed(), number)
        return EncodedSample(self._encoder.split(value)[part], restore_key)

    def len_worker(self, worker_idx: int | None = None) -> int:
        return self.dataset.len_worker(worker_idx)

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__qualname__, "dataset": self.dataset.config()}


@dataclasses.dataclass(frozen=True)
class Packing(Generic[Sample, Row, Batch]):
    """The encoder's packing, in energon's terms."""

    encoder: SampleEncoder[Sample, Row, Batch]

    def select(self, samples: list[EncodedSample[Sample]]) -> list[list[EncodedSample[Sample]]]:
        """Arrange the whole buffer in packs."""
        packs = self.encoder.select_packs([sample.value for sample in samples])
        if sorted(index for pack in packs for index in pack) != list(range(len(samples))):
            raise ValueError(
                f"{type(self.encoder).__name__}.select_packs has to use every sample exactly once"
            )
        return [[samples[index] for index in pack] for pack in packs]

    def pack(self, samples: list[EncodedSample[Sample]]) -> EncodedSample[Row]:
        """Make one row."""
        return EncodedSample(self.encoder.pack([sample.value for sample in samples]), ())


class QuietPackingDataset(PackingDataset[Any, Any, Any]):
    """Energon's packing without the progress bar that each worker would draw at its start."""

    def _fill_reading_buffer(self, source_iter: Iterator[Any], log_progress: bool = False) -> bool:
        return bool(super()._fill_reading_buffer(source_iter, log_progress=False))


@dataclasses.dataclass(frozen=True)
class Delivery(Generic[Batch]):
    """What a worker hands over: a batch, or, at the end of a failed run, a user's error in one sentence."""

    report: SampleReport
    batch: Batch | None = None
    error: str | None = None

    def pin_memory(self) -> Delivery[Batch]:
        """Pin the batch; torch's loader calls this where there is an accelerator."""
        from torch.utils.data._utils.pin_memory import pin_memory

        return dataclasses.replace(self, batch=pin_memory(self.batch))


class DeliveryDataset(BaseWrapperDataset[Any, Delivery[Any]]):
    """Attaches the report of the samples met since the last batch; carries user errors out of the worker."""

    def __init__(
        self,
        dataset: SavableDataset[Any],
        encoding: EncodeDataset[Any, Any, Any],
        worker_config: WorkerConfig,
    ) -> None:
        super().__init__(dataset, worker_config=worker_config)
        self._encoding = encoding

    def reset_state_own(self) -> None:
        pass

    def __iter__(self) -> Iterator[Delivery[Any]]:
        try:
            for batch in self.dataset:
                yield Delivery(self._take_report(), batch)
        except UserError as error:
            yield Delivery(self._take_report(), error=str(error))

    def _take_report(self) -> SampleReport:
        report, self._encoding.report = self._encoding.report, SampleReport()
        return report

    def len_worker(self, worker_idx: int | None = None) -> int:
        return self.dataset.len_worker(worker_idx)

    def config(self) -> dict[str, Any]:
        return self.dataset.config()


def collate_values(
    encoder: SampleEncoder[Any, Any, Batch],
) -> Callable[[Sequence[EncodedSample[Any]]], Batch]:
    """The encoder's `collate` on what energon's batching passes."""
    return lambda rows: encoder.collate([row.value for row in rows])
