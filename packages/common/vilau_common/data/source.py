"""One weighted source of a training's data, and how Megatron-Energon reads its samples."""

from __future__ import annotations

import dataclasses
from typing import BinaryIO

import numpy as np
from megatron.energon import WorkerConfig
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.flavors.webdataset.itar import ITAR_SUFFIX
from megatron.energon.flavors.webdataset.metadata import WebdatasetMeta
from megatron.energon.flavors.webdataset.sample_loader import RawSampleData, WebdatasetSampleLoaderDataset
from megatron.energon.flavors.webdataset.sharder import Sharder
from megatron.energon.wrappers.repeat_dataset import RepeatDataset

from vilau_common.data.energon_index import SPLIT_PART
from vilau_common.data.tar_members import split_member_name, tar_members
from vilau_common.errors import UserError

# The order within an epoch: slices of neighbouring samples are shuffled, some are open at once, each next
# sample is that of a random open one, and the shuffle buffer mixes what comes out. Long slices keep reads from
# discs and object stores sequential.
SAMPLES_PER_SLICE = 100
OPEN_SLICES = 16
_OPEN_FILES = 2 * OPEN_SLICES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set directory in a blend. The same directory may occur several times with different forms."""

    path: str
    weight: float = 1.0  # relative; of the samples drawn
    form: str = ""  # what the encoder makes of the samples


@dataclasses.dataclass(slots=True)
class RawSample:
    """A sample as stored. `error` says why it could not be read, in which case there are no fields."""

    key: str
    shard: str
    form: str
    fields: dict[str, bytes]
    error: str | None = None


class ShardReader:
    """Random access to the samples of a directory of shards: what energon calls a join reader.

    Energon's own reader spends about 130 microseconds on a small sample, mostly in `tarfile` and in keeping
    books of where it came from; this one reads a sample in one go, in about 15.
    """

    def __init__(self, directory: EPath, shards: list[str], form: str) -> None:
        self._directory = directory
        self._shards = shards
        self._form = form
        self._offsets = [self._read_offsets(shard) for shard in shards]
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        self._files: dict[int, BinaryIO] = {}

    def __getitem__(self, number: int) -> RawSample:
        shard_number = int(np.searchsorted(self._firsts, number, side="right")) - 1
        within = number - int(self._firsts[shard_number])
        begin, end = (int(offset) for offset in self._offsets[shard_number][within : within + 2])
        key, fields, shard = "", {}, f"{self._directory}/{self._shards[shard_number]}"
        try:
            file = self._file(shard_number)
            file.seek(begin)
            data = file.read(end - begin)
            if len(data) < end - begin:
                raise ValueError("the shard is shorter than its index says")
            for name, content in tar_members(data):
                key, field = split_member_name(name)
                fields[field] = content
        except (OSError, ValueError) as error:
            return RawSample(key or f"number {within}", shard, self._form, {}, f"cannot be read: {error}")
        return RawSample(key, shard, self._form, fields)

    def _read_offsets(self, shard: str) -> np.ndarray:
        path = (self._directory / shard).with_suffix(ITAR_SUFFIX)
        with path.open("rb") as file:
            return np.frombuffer(file.read(), np.uint64)

    def _file(self, shard_number: int) -> BinaryIO:
        file = self._files.pop(shard_number, None)
        if file is None:
            path = self._directory / self._shards[shard_number]
            # Energon's path layer is for object stores; on a file system it would cost more than the read.
            file = path.local_path().open("rb") if path.is_local() else path.open("rb")
        self._files[shard_number] = file  # the most recently used comes last
        if len(self._files) > _OPEN_FILES:
            self._files.pop(next(iter(self._files))).close()
        return file


def open_source(
    source: Source, config: WorkerConfig, rotation: int
) -> tuple[SavableDataset[RawSampleData], int]:
    """The endless stream of a source's samples for this worker, newly shuffled each epoch; its sample count.

    `config.seed_offset` seeds the shuffling. `rotation`: the number of samples in the sources before, by
    which the division among workers is rotated so that no worker always gets the larger share.
    """
    directory = EPath(source.path)
    meta = WebdatasetMeta.from_config(path=directory, split_part=SPLIT_PART)
    if meta.sample_excludes:
        raise UserError(
            f"{source.path}: split.yaml excludes single samples, which is not supported; exclude shards"
        )
    samples = sum(shard.count for shard in meta.shards)
    processes = max(config.num_workers, 1) * config.world_size
    if samples < processes:
        raise UserError(f"{source.path} has {samples} samples, too few for {processes} loader processes")
    dataset = WebdatasetSampleLoaderDataset(
        join_readers=[ShardReader(directory, [shard.name for shard in meta.shards], source.form)],
        workers_sample_slice_offsets=Sharder.shard_workers(
            meta.shards,
            worker_config=config,
            max_samples_per_sequence=SAMPLES_PER_SLICE,
            rotation_offset=rotation % processes,
        ),
        worker_config=config,
        shuffle_over_epochs=1,
        parallel_slice_iters=OPEN_SLICES,
    )
    return RepeatDataset(dataset, worker_config=config), samples
