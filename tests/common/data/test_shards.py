from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vilau_common.data.shards import ShardWriter, dataset_info, read_shards
from vilau_common.data.tar_members import split_member_name, tar_members
from vilau_common.errors import UserError

SAMPLES = [
    (f"{number:03d}", {"txt": f"text {number}".encode(), "x.bin": bytes(number)}) for number in range(10)
]


def write(directory: Path, samples=SAMPLES, **info) -> Path:
    with ShardWriter(directory, info, samples_per_shard=4) as writer:
        for key, fields in samples:
            writer.write(key, fields)
    return directory


def test_reading_gives_what_was_written_in_order(tmp_path: Path) -> None:
    directory = write(tmp_path / "new" / "train", world="toy")
    assert list(read_shards(directory)) == SAMPLES
    info = dataset_info(directory)
    assert (info.samples, info.fields, info.info) == (10, ["txt", "x.bin"], {"world": "toy"})
    assert info.shards == {"00000.tar": 4, "00001.tar": 4, "00002.tar": 2}


def test_nothing_is_printed_or_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train")
    assert capfd.readouterr() == ("", "")


def test_equal_samples_give_equal_files_and_fingerprints(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for shard in dataset_info(first).shards:
        assert (first / shard).read_bytes() == (second / shard).read_bytes()
    assert dataset_info(first).fingerprint == dataset_info(second).fingerprint
    changed = [*SAMPLES[:-1], (SAMPLES[-1][0], {**SAMPLES[-1][1], "txt": b"text 8"})]
    assert dataset_info(write(tmp_path / "c", changed)).fingerprint != dataset_info(first).fingerprint


def test_energons_own_loader_reads_the_data_set(tmp_path: Path) -> None:
    from megatron.energon import WorkerConfig
    from megatron.energon.dataset_config import get_dataset_from_config

    directory = write(tmp_path / "train")
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    factory = get_dataset_from_config(directory, worker_config=config, decoder=None)
    assert len(factory) == len(SAMPLES)
    keys = {sample["__key__"] for sample in _once(factory.build(), config)}
    assert keys == {key for key, _ in SAMPLES}


def _once(dataset, config):
    config.worker_activate(0)
    try:
        yield from dataset
    finally:
        config.worker_deactivate()


def test_a_failed_run_leaves_the_old_data_set_and_nothing_else(tmp_path: Path) -> None:
    directory = write(tmp_path / "train")
    with pytest.raises(ValueError, match=r"a\.b"):
        write(directory, [("other", {"txt": b""}), ("a.b", {"txt": b""})])
    assert list(read_shards(directory)) == SAMPLES
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_new_data_set_replaces_the_old_one_whole(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "train", SAMPLES[:1])
    assert list(read_shards(tmp_path / "train")) == SAMPLES[:1]
    assert not (tmp_path / "train" / "00001.tar").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_what_a_killed_run_left_does_not_get_in(tmp_path: Path) -> None:
    abandoned = ShardWriter(tmp_path / "train", {}, samples_per_shard=1)
    abandoned.__enter__()
    abandoned.write("left-over", {"txt": b""})
    with pytest.raises(UserError, match="not prepared"):
        dataset_info(tmp_path / "train")
    write(tmp_path / "train")
    assert list(read_shards(tmp_path / "train")) == SAMPLES


@pytest.mark.parametrize("key", ["a.b", "__meta__", "a/b", "", "k" * 81, "ü"])
def test_keys_that_webdataset_would_misread_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        write(tmp_path / "train", [(key, {"txt": b""})])


def test_a_key_occurs_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'000'"):
        write(tmp_path / "train", [SAMPLES[0], SAMPLES[1], SAMPLES[0]])


def test_no_samples_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no samples"):
        write(tmp_path / "train", [])
    assert not (tmp_path / "train").exists()


def test_a_missing_data_set_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not prepared: .*nowhere.*; run `make prepare`"):
        next(read_shards(tmp_path / "nowhere", hint="run `make prepare`"))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = write(tmp_path / "train") / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:1300])
    with pytest.raises(UserError, match=r"00001\.tar"):
        list(read_shards(tmp_path / "train"))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_archives_read_as_tarfile_reads_them(tar_format: int) -> None:
    long = "" if tar_format == tarfile.USTAR_FORMAT else "n" * 150
    contents = {
        "dir/a.txt": b"1",
        f"dir/{long}b.é.txt": np.arange(300, dtype=np.uint8).tobytes(),
        "c.x.y": b"",
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert dict(tar_members(file.getvalue())) == contents


def test_field_begins_at_the_first_dot_of_the_file_name() -> None:
    assert split_member_name("v1.0/a.codes.npy") == ("v1.0/a", "codes.npy")
