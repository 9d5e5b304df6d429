from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from loader_toy import PictureEncoder, TokenEncoder, toy_loader

from vilau_common.data.loader import LoaderConfig, build_loader
from vilau_common.data.source import Source
from vilau_common.errors import UserError

SAMPLES = 256


def keys_of_batches(
    directory: Path, batches: int, *, workers: int = 0, rank: int = 0, world_size: int = 1, **config
):
    config = LoaderConfig(**{"batch_size": 32, "shuffle_buffer": 1, **config}, workers=workers)
    source = Source(path=str(directory))
    loader = build_loader([source], PictureEncoder(), config, seed=1, rank=rank, world_size=world_size)
    keys = [key for _ in range(batches) for key in next(loader).keys[0]]
    loader.close()
    return keys


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_holds_every_sample_once(pictures: Path, workers: int) -> None:
    first = keys_of_batches(pictures, 2 * SAMPLES // 32, workers=workers)
    assert len(set(first[:SAMPLES])) == len(set(first[SAMPLES:])) == SAMPLES
    assert first[:SAMPLES] != first[SAMPLES:]  # a new order


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_samples_out(pictures: Path, workers: int) -> None:
    parts = [set(keys_of_batches(pictures, 4, workers=workers, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [128, 128]
    assert not parts[0] & parts[1]


def test_samples_are_well_mixed(pictures: Path) -> None:
    keys = np.array(keys_of_batches(pictures, 8, shuffle_buffer=128), int)
    places = np.arange(len(keys))
    assert abs(np.corrcoef(keys, places)[0, 1]) < 0.35
    # Two neighbours of a random order are a third of the range apart on average.
    assert np.abs(np.diff(keys)).mean() > SAMPLES / 5


def test_pictures_and_captions_belong_to_their_keys(pictures: Path) -> None:
    loader = toy_loader(pictures, workers=1, packing=False)
    for _ in range(4):
        batch = next(loader)
        keys, _, captions = batch.keys
        assert batch.tensors["images"][:, 0, 0, 0].tolist() == [int(key) for key in keys]
        assert [int(caption.split()[1]) for caption in captions] == [int(key) for key in keys]
    loader.close()


def test_blend_follows_weights_and_forms_and_mixes_orders(pictures: Path) -> None:
    loader = toy_loader(pictures, workers=0, packing=False)
    batches = [next(loader) for _ in range(75)]  # 600 samples
    drawn: dict[str, list[str]] = {"a": [], "b": []}
    for batch in batches:
        for key, form in zip(batch.keys[0], batch.keys[1], strict=True):
            drawn[form].append(key)
    assert 0.6 < len(drawn["a"]) / 600 < 0.73  # weights 2 : 1
    assert drawn["a"][:50] != drawn["b"][:50]
    assert len(set(drawn["a"][:50]) & set(drawn["b"][:50])) < 40


def test_random_numbers_differ_by_sample_and_by_seed_and_repeat(pictures: Path) -> None:
    def noise(seed: int) -> list[float]:
        loader = toy_loader(pictures, workers=0, packing=False, seed=seed)
        return [value for _ in range(20) for value in next(loader).tensors["noise"].tolist()]

    first = noise(1)
    assert len(set(first)) == len(first)
    assert 0.4 < float(np.mean(first)) < 0.6
    assert noise(1) == first
    assert not set(noise(2)) & set(first)


def test_every_packed_sample_arrives_once(pictures: Path) -> None:
    config = LoaderConfig(batch_size=4, workers=0, shuffle_buffer=1, packing_buffer=30)
    loader = build_loader([Source(path=str(pictures))], TokenEncoder(), config, seed=0)
    counts: Counter[str] = Counter()
    rows = 0
    while sum(counts.values()) < SAMPLES:
        batch = next(loader)
        rows += len(batch.keys)
        for pack in batch.keys:
            counts.update(pack)
        filled = (batch.tensors["tokens"] > 0).float().mean()
        assert filled > 0.5
    assert max(counts.values()) <= 2  # the buffer may hold a sample of this epoch while the next has begun
    assert len(counts) > 0.8 * SAMPLES


class LosingEncoder(TokenEncoder):
    def select_packs(self, samples):
        return super().select_packs(samples[1:])


def test_packing_must_not_lose_samples(pictures: Path) -> None:
    config = LoaderConfig(batch_size=4, workers=0, packing_buffer=30)
    loader = build_loader([Source(path=str(pictures))], LosingEncoder(), config, seed=0)
    with pytest.raises(ValueError, match="exactly once"):
        next(loader)


def test_packing_needs_an_encoder_that_packs(pictures: Path) -> None:
    config = LoaderConfig(batch_size=4, workers=0, packing_buffer=30)
    loader = build_loader([Source(path=str(pictures))], PictureEncoder(), config, seed=0)
    with pytest.raises(NotImplementedError, match="packing_buffer"):
        next(loader)


def test_two_loaders_in_one_process_do_not_disturb_each_other(pictures: Path) -> None:
    alone = [next(toy_loader(pictures, workers=0, packing=False)).digest()]
    first, second = (toy_loader(pictures, workers=0, packing=False, seed=seed) for seed in (5, 6))
    assert [next(first).digest()] == alone
    assert [next(second).digest()] != alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"packing_buffer": -1}, "packing_buffer is -1"),
        ({"max_bad_share": 2.0}, "max_bad_share is 2.0"),
    ],
)
def test_impossible_settings_are_named(pictures: Path, change: dict, message: str) -> None:
    config = dataclasses.replace(LoaderConfig(batch_size=4), **change)
    with pytest.raises(UserError, match=message):
        build_loader([Source(path=str(pictures))], PictureEncoder(), config, seed=0)


def test_wrong_sources_are_named(pictures: Path, tmp_path: Path) -> None:
    config = LoaderConfig(batch_size=4, workers=0)
    missing = Source(path=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"not prepared: .*nothing.*; run this"):
        build_loader([missing], PictureEncoder(), config, seed=0, hint="run this")
    with pytest.raises(UserError, match="weight is 0"):
        build_loader([Source(path=str(pictures), weight=0)], PictureEncoder(), config, seed=0)
    with pytest.raises(UserError, match="no data sources"):
        build_loader([], PictureEncoder(), config, seed=0)
    with pytest.raises(UserError, match="too few for 300"):
        build_loader([Source(path=str(pictures))], PictureEncoder(), config, seed=0, world_size=300)
