from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from loader_toy import PictureEncoder, good_sample, write_pictures

from vilau_common.data.loader import Loader, LoaderConfig, build_loader
from vilau_common.data.source import Source
from vilau_common.errors import UserError

SAMPLES = 256
BATCH = 16


def damaged(number: int) -> dict[str, bytes]:
    sample = good_sample(number)
    if number % 2:
        return {**sample, "png": sample["png"][:-30]}
    return {**sample, "json": b'{"captions": []}'}


def data_set(directory: Path, bad: set[int]) -> Path:
    samples = [damaged(number) if number in bad else good_sample(number) for number in range(SAMPLES)]
    write_pictures(directory, samples)
    return directory


def loader_of(
    directory: Path, *, workers: int = 0, share: float = 1.0, encoder=None, log: Path | None = None
) -> Loader:
    config = LoaderConfig(batch_size=BATCH, workers=workers, shuffle_buffer=1, max_bad_share=share)
    sources = [Source(path=str(directory))]
    return build_loader(sources, encoder or PictureEncoder(), config, seed=0, log_directory=log)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_counted_and_listed(tmp_path: Path, workers: int) -> None:
    bad = {3, 10, 100, 201}
    directory = data_set(tmp_path / "data", bad)
    loader = loader_of(directory, workers=workers, log=tmp_path / "run")
    keys: set[str] = set()
    while loader.samples_seen < SAMPLES + 60 * workers:  # two workers may be unevenly far
        keys.update(next(loader).keys[0])
    loader.close()
    listed = [
        json.loads(line) for line in (tmp_path / "run" / "bad_samples_0.jsonl").read_text().splitlines()
    ]
    assert len(listed) == loader.bad_samples >= len(bad)
    assert {int(record["key"]) for record in listed} == bad
    assert not {int(key) for key in keys} & bad
    by_key = {int(record["key"]): record for record in listed}
    assert by_key[201]["shard"] == f"{directory}/00003.tar"
    assert "cannot be decoded" in by_key[3]["reason"]
    assert by_key[10]["reason"].startswith("no captions")


def test_counts_and_list_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    directory = data_set(tmp_path / "data", set(range(0, SAMPLES, 9)))

    def run(log: Path, workers: int, resume_at: int | None) -> tuple[int, int, str]:
        loader = loader_of(directory, workers=workers, log=log)
        for step in range(20):
            if step == resume_at:
                state = loader.state_dict()
                next(loader), next(loader)  # steps whose results are lost
                loader.close()
                loader = loader_of(directory, workers=workers, log=log)
                loader.load_state_dict(state)
            next(loader)
        loader.close()
        return loader.samples_seen, loader.bad_samples, (log / "bad_samples_0.jsonl").read_text()

    for workers in (0, 2):
        whole = run(tmp_path / f"whole{workers}", workers, None)
        assert whole[1] > 10
        assert run(tmp_path / f"resumed{workers}", workers, 11) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_too_large_a_share_stops_the_run_in_one_sentence(tmp_path: Path, workers: int) -> None:
    directory = data_set(tmp_path / "data", set(range(0, SAMPLES, 8)))
    loader = loader_of(directory, workers=workers, share=0.05, log=tmp_path / "run")
    with pytest.raises(UserError) as caught:
        list(loader)
    loader.close()
    message = str(caught.value)
    assert loader.samples_seen >= 200
    assert f"{loader.bad_samples} of {loader.samples_seen} samples seen are bad" in message
    assert "5.0%" in message and "no captions" in message and "bad_samples_0.jsonl" in message
    assert "\n" not in message


def test_a_share_below_the_limit_does_not_stop_the_run(tmp_path: Path) -> None:
    loader = loader_of(data_set(tmp_path / "data", {1, 2}), share=0.05)
    for _ in range(3 * SAMPLES // BATCH):
        next(loader)
    assert loader.bad_samples >= 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_any_good_sample_ends_too(tmp_path: Path, workers: int) -> None:
    loader = loader_of(data_set(tmp_path / "data", set(range(SAMPLES))), workers=workers)
    with pytest.raises(UserError, match="in a row are bad, such as sample") as caught:
        next(loader)
    loader.close()
    assert "\n" not in str(caught.value)


def test_a_shard_cut_short_costs_its_lost_samples_only(tmp_path: Path) -> None:
    directory = data_set(tmp_path / "data", set())
    shard = directory / "00002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    loader = loader_of(directory)
    keys: set[str] = set()
    while loader.samples_seen < SAMPLES:
        keys.update(next(loader).keys[0])
    assert 20 < loader.bad_samples < 44  # of the 64 in the shard
    assert len(keys) > SAMPLES - 64


class BrokenEncoding(PictureEncoder):
    def encode(self, key, fields, form, rng):
        raise KeyError("a defect of ours")


class BrokenCollation(PictureEncoder):
    def collate(self, rows):
        raise KeyError("a defect of ours")


@pytest.mark.parametrize("encoder", [BrokenEncoding(), BrokenCollation()])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_defect_in_an_encoder_is_not_taken_for_bad_samples(pictures: Path, workers: int, encoder) -> None:
    loader = loader_of(pictures, workers=workers, encoder=encoder)
    with pytest.raises(KeyError, match="a defect of ours"):
        next(loader)
    loader.close()
    assert loader.bad_samples == 0


def test_warnings_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of(data_set(tmp_path / "data", set(range(0, SAMPLES, 4))))
    with caplog.at_level(logging.WARNING):
        while loader.samples_seen < SAMPLES:
            next(loader)
    assert loader.bad_samples > 40
    assert len(caplog.records) == 10
    assert "only counted and listed" in caplog.records[-1].message
