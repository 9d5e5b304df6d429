"""The training data loader: weighted sources, shuffled, encoded, perhaps packed, batched; exactly resumable.

    sources ─► blend ─► shuffle buffer ─► encode ─► (packing buffer ─► packs) ─► batches ─► main process

Everything runs on Megatron-Energon's savable datasets, in worker processes or, with none, in the main one.
Each worker of each rank has its own part of every source and its own random streams.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from megatron.energon import WorkerConfig
from megatron.energon.errors import reraise_exception
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.savable_loader import (
    SavableDataLoader,
    SavableDataLoaderState,
    SavableDatasetCheckpoint,
)
from megatron.energon.wrappers import BatchDataset, BlendDataset, ShuffleBufferDataset

from vilau_common.data.bad_samples import BadSampleLedger
from vilau_common.data.encoder import Batch, Row, Sample, SampleEncoder
from vilau_common.data.loader_process import WorkerStart, end_workers
from vilau_common.data.loader_state import from_plain, to_plain
from vilau_common.data.pipeline import (
    Delivery,
    DeliveryDataset,
    EncodeDataset,
    Packing,
    QuietPackingDataset,
    collate_values,
)
from vilau_common.data.shards import DEFAULT_HINT, dataset_info
from vilau_common.data.source import Source, open_source
from vilau_common.errors import UserError

# A worker notes its state at most this often; a resumed run repeats the work since the last note.
_SECONDS_BETWEEN_NOTES = 1.0
_BATCHES_AHEAD = 4  # that each worker prepares
_BATCHES_BETWEEN_COLLECTIONS = 100  # of Python's garbage, in workers
_STATE_FORMAT = 2
# Where a training's configuration has it: a run that stopped above it goes on where it is raised.
MAX_BAD_SHARE = "data.loader.max_bad_share"


@dataclasses.dataclass(kw_only=True)
class LoaderConfig:
    """How batches are made."""

    batch_size: int  # rows on this rank
    workers: int = 1  # processes on this rank; 0 loads in the main process
    shuffle_buffer: int = 1000  # samples a worker holds to draw from
    packing_buffer: int = 0  # samples a worker holds to make packs of; 0: a row is a sample
    max_bad_share: float = 0.01  # of the samples seen, above which the run stops

    def validate(self) -> None:
        """Raise UserError for a value that cannot work."""
        for name, least in (("batch_size", 1), ("workers", 0), ("shuffle_buffer", 1), ("packing_buffer", 0)):
            if getattr(self, name) < least:
                raise UserError(f"loader: {name} is {getattr(self, name)}; it has to be at least {least}")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"loader: max_bad_share is {self.max_bad_share}; it has to lie between 0 and 1")


class Loader(Generic[Batch]):
    """An endless iterator of batches whose exact position can be saved and restored."""

    def __init__(
        self, loader: SavableDataLoader[Delivery[Batch]], identity: dict[str, Any], ledger: BadSampleLedger
    ) -> None:
        """Use `build_loader`. `identity`: what has to be equal for a saved position to mean the same."""
        self._loader = loader
        self._identity = identity
        self._ledger = ledger
        self._batches: Iterator[Delivery[Batch]] | None = None
        # Where each worker starts, and the number of the batch that it delivered before that.
        processes = max(identity["workers"], 1)
        self._start = [SavableDatasetCheckpoint(state=None, offset=0)] * processes
        self._start_counters = [-1] * processes
        # Workers ignore SIGTERM, so the interpreter must not be left to end them with it.
        self._finalizer = weakref.finalize(self, end_workers, loader, os.getpid())

    @property
    def sources(self) -> list[list[Any]]:
        """Fingerprint, form and weight of each data set."""
        sources: list[list[Any]] = self._identity["sources"]
        return sources

    @property
    def samples_seen(self) -> int:
        """Samples read for the batches taken so far, bad ones included."""
        return self._ledger.seen

    @property
    def bad_samples(self) -> int:
        """Samples skipped on the way to the batches taken so far."""
        return self._ledger.bad

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises UserError where too many samples are bad."""
        if self._batches is None:
            self._batches = iter(self._loader)
        delivery = next(self._batches)
        self._ledger.add(delivery.report)
        if delivery.error is not None:
            raise UserError(delivery.error)
        assert delivery.batch is not None
        return delivery.batch

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch taken, on this rank, as plain values (see `loader_state`)."""
        return {
            "format": _STATE_FORMAT,
            "identity": self._identity,
            "samples": self._ledger.state_dict(),
            "energon": to_plain(self._energon_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; before the first batch only.

        Raises UserError where sources, sizes, seed, workers or ranks are not those of the saved run.
        """
        if self._batches is not None:
            raise RuntimeError("a loader's position can only be set before its first batch")
        if state.get("format") != _STATE_FORMAT:
            raise UserError(f"the saved data position has format {state.get('format')}, not {_STATE_FORMAT}")
        saved = state["identity"]
        changes = [
            f"{name} was {saved.get(name)} and is {value}"
            for name, value in self._identity.items()
            if saved.get(name) != value
        ]
        if changes:
            raise UserError(f"the saved data position is another loader's: {'; '.join(changes)}")
        self._ledger.load_state_dict(state["samples"])
        energon_state: SavableDataLoaderState | None = from_plain(state["energon"])
        self._loader.restore_state_rank(energon_state)
        if energon_state is not None and self._identity["workers"]:
            self._start = energon_state.worker_states
            # Energon forgets the offsets here (7.4.1, SavableDataLoader.restore_state_rank): a state saved before
            # every worker has delivered again would be too far back.
            self._loader._worker_sample_counters = [_last_delivered(worker) for worker in self._start]
            self._start_counters = list(self._loader._worker_sample_counters)

    def _energon_state(self) -> SavableDataLoaderState | None:
        state = self._loader.save_state_rank()
        if state is not None and self._identity["workers"]:
            # A worker that is only just starting may answer before it has taken up its own state (energon 7.4.1,
            # SavableDatasetWrapper.__iter__). One that has delivered nothing yet stands where it started.
            counters = zip(self._loader._worker_sample_counters, self._start_counters, strict=True)
            state.worker_states = [
                start if now == before else worker
                for worker, start, (now, before) in zip(
                    state.worker_states, self._start, counters, strict=True
                )
            ]
        return state

    def close(self) -> None:
        """End the worker processes. Also happens at the end of the program."""
        self._finalizer()


def build_loader(
    sources: Sequence[Source],
    encoder: SampleEncoder[Sample, Row, Batch],
    config: LoaderConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    log_directory: Path | None = None,
    hint: str = DEFAULT_HINT,
) -> Loader[Batch]:
    """Make the loader of one rank.

    `log_directory` gets `bad_samples_<rank>.jsonl` when there are any. `hint` tells how to prepare a missing
    data set. Raises UserError for missing data and values that cannot work.
    """
    config.validate()
    if not sources:
        raise UserError("no data sources are given; name at least one data set")
    for source in sources:
        if source.weight <= 0:
            raise UserError(f"data source {source.path}: its weight is {source.weight}; it has to be above 0")
    identity = {
        "sources": [
            [dataset_info(source.path, hint=hint).fingerprint, source.form, float(source.weight)]
            for source in sources
        ],
        **{
            name: getattr(config, name)
            for name in ("batch_size", "workers", "shuffle_buffer", "packing_buffer")
        },
        "seed": seed,
        "rank": rank,
        "world_size": world_size,
    }
    # What is wrong with data is a BadSample or a UserError; any other exception is a defect and must not be
    # taken for a bad sample, as energon would.
    workers = WorkerConfig(
        rank=rank,
        world_size=world_size,
        num_workers=config.workers,
        seed_offset=seed,
        global_error_handler=reraise_exception,
    )
    loader = SavableDataLoader(
        _batches(_blend(sources, workers), encoder, config, workers),
        checkpoint_every_sec=_SECONDS_BETWEEN_NOTES,
        prefetch_factor=_BATCHES_AHEAD,
        gc_collect_every_n_steps=_BATCHES_BETWEEN_COLLECTIONS if config.workers else 0,
    )
    loader.pin_memory = torch.cuda.is_available()
    if loader.worker_init_fn is not None:
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn)
    log_file = None if log_directory is None else log_directory / f"bad_samples_{rank}.jsonl"
    return Loader(loader, identity, BadSampleLedger(config.max_bad_share, log_file))


def _blend(sources: Sequence[Source], workers: WorkerConfig) -> SavableDataset[Any]:
    parts: list[tuple[SavableDataset[Any], float]] = []
    rotation = 0
    for number, source in enumerate(sources):
        # Equal seeds would shuffle a directory that occurs twice in the same order both times.
        own = dataclasses.replace(workers, seed_offset=(workers.seed_offset << 16) + number + 1)
        dataset, samples = open_source(source, own, rotation)
        rotation += samples
        parts.append((dataset, float(source.weight)))
    return parts[0][0] if len(parts) == 1 else BlendDataset(*parts, worker_config=workers)


def _batches(
    samples: SavableDataset[Any],
    encoder: SampleEncoder[Sample, Row, Batch],
    config: LoaderConfig,
    workers: WorkerConfig,
) -> DeliveryDataset:
    shuffled = ShuffleBufferDataset(samples, size=config.shuffle_buffer, worker_config=workers)
    encoding = EncodeDataset(shuffled, encoder, workers)
    rows: SavableDataset[Any] = encoding
    if config.packing_buffer:
        packing = Packing(encoder)
        rows = QuietPackingDataset(
            rows,
            buffer_size=config.packing_buffer,
            pre_packer=packing.select,
            final_packer=packing.pack,
            worker_config=workers,
        )
    batches = BatchDataset(
        rows, batch_size=config.batch_size, batcher=collate_values(encoder), worker_config=workers
    )
    return DeliveryDataset(batches, encoding, workers)


def _last_delivered(worker_state: SavableDatasetCheckpoint) -> int:
    """The number of the batch that a worker delivered last before its state was saved; -1: none."""
    return -1 if worker_state.state is None else worker_state.state.sample_index + worker_state.offset - 1
