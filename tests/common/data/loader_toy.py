"""Toy samples and encoders for the loader's tests, and a program that is interrupted and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilau_common.data.encoder import SampleEncoder
from vilau_common.data.fields import image_field, json_field, text_list
from vilau_common.data.loader import Loader, LoaderConfig, build_loader
from vilau_common.data.prepare import encode_png
from vilau_common.data.shards import ShardWriter
from vilau_common.data.source import Source

ROW_TOKENS = 32


def good_sample(number: int) -> dict[str, bytes]:
    """A 4×4 picture whose red channel is `number`, with 1 to 3 captions."""
    image = np.full((4, 4, 3), number % 256, np.uint8)
    captions = [f"picture {number} wording {wording}" for wording in range(1 + number % 3)]
    return {"png": encode_png(image), "json": json.dumps({"captions": captions}).encode()}


def write_pictures(
    directory: Path, samples: Sequence[Mapping[str, bytes]], samples_per_shard: int = 64
) -> None:
    """Write samples with their places as keys."""
    with ShardWriter(directory, {}, samples_per_shard=samples_per_shard) as writer:
        for number, fields in enumerate(samples):
            writer.write(f"{number:04d}", fields)


@dataclasses.dataclass
class ToyBatch:
    """What the toy encoders collate."""

    keys: list[Any]
    tensors: dict[str, torch.Tensor]

    def digest(self) -> str:
        """Equal for batches that are equal bit for bit."""
        digest = hashlib.sha256(json.dumps(self.keys).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


class PictureEncoder(SampleEncoder[Any, Any, ToyBatch]):
    """Picture, random caption and random noise."""

    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Any:
        captions = text_list(json_field(fields), "captions")
        return key, form, image_field(fields), captions[rng.integers(len(captions))], rng.random()

    def collate(self, rows: Sequence[Any]) -> ToyBatch:
        keys, forms, images, captions, noise = zip(*rows, strict=True)
        return ToyBatch(
            [list(keys), list(forms), list(captions)],
            {"images": torch.from_numpy(np.stack(images)), "noise": torch.tensor(noise)},
        )


class TokenEncoder(SampleEncoder[Any, Any, ToyBatch]):
    """Random numbers of random tokens, packed first-fit into rows."""

    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Any:
        return key, rng.integers(1, 100, size=rng.integers(3, 20))

    def select_packs(self, samples: Sequence[Any]) -> list[list[int]]:
        packs: list[list[int]] = []
        room: list[int] = []
        for index in sorted(range(len(samples)), key=lambda index: -len(samples[index][1])):
            size = len(samples[index][1])
            place = next((place for place, free in enumerate(room) if free >= size), None)
            if place is None:
                packs.append([])
                room.append(ROW_TOKENS)
                place = len(packs) - 1
            packs[place].append(index)
            room[place] -= size
        return packs

    def pack(self, samples: Sequence[Any]) -> Any:
        keys, tokens = zip(*samples, strict=True)
        row = np.zeros(ROW_TOKENS, np.int64)
        joined = np.concatenate(tokens)
        row[: len(joined)] = joined
        return list(keys), row

    def collate(self, rows: Sequence[Any]) -> ToyBatch:
        keys, tokens = zip(*rows, strict=True)
        return ToyBatch(list(keys), {"tokens": torch.from_numpy(np.stack(tokens))})


class SplittingEncoder(TokenEncoder):
    """Up to five parts of each sample."""

    def split(self, sample: Any) -> Sequence[Any]:
        key, tokens = sample
        return [
            (f"{key}.{part}", piece) for part, piece in enumerate(np.array_split(tokens, 1 + len(tokens) % 5))
        ]


def toy_loader(
    directory: Path, *, workers: int, packing: bool, seed: int = 5, splitting: bool = False
) -> Loader[ToyBatch]:
    """Two sources from one directory, small buffers."""
    sources = [Source(path=str(directory), weight=2.0, form="a"), Source(path=str(directory), form="b")]
    config = LoaderConfig(
        batch_size=8, workers=workers, shuffle_buffer=40, packing_buffer=30 if packing else 0
    )
    encoder = (SplittingEncoder() if splitting else TokenEncoder()) if packing else PictureEncoder()
    return build_loader(sources, encoder, config, seed=seed)


def main() -> None:
    """Print batches' digests. After SIGTERM: save, print 'saved', a few more batches and the workers, then wait."""
    directory, state_file = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    loader = toy_loader(directory, workers=2, packing=True)
    if state_file.exists():
        loader.load_state_dict(torch.load(state_file, weights_only=True))
        for _ in range(int(sys.argv[3])):
            print(next(loader).digest(), flush=True)
        return
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while not stop:
        print(next(loader).digest(), flush=True)
        time.sleep(0.05)  # the training step
    torch.save(loader.state_dict(), state_file)
    print("saved", flush=True)
    for _ in range(int(sys.argv[3])):
        print(next(loader).digest(), flush=True)
    print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
