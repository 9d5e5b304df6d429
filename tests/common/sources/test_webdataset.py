"""img2dataset's tars: written anew, or trained from as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from source_toys import img2dataset_sample, picture, run_prepare, write_tar

from vilau_common.data.encoder import SampleEncoder
from vilau_common.data.fields import captions_field, image_field
from vilau_common.data.loader import LoaderConfig, build_loader
from vilau_common.data.shards import dataset_info, read_shards
from vilau_common.data.source import Source
from vilau_common.data.sources.webdataset import WebDatasetConfig, tar_samples
from vilau_common.errors import UserError

TARS, PER_TAR = 4, 10


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Forty samples in four tars, one of them below a subfolder, one with extended headers."""
    folder = tmp_path / "coyo"
    for tar in range(TARS):
        place = folder / ("part" if tar == 3 else "") / f"{tar:05d}.tar"
        numbers = range(tar * PER_TAR, (tar + 1) * PER_TAR)
        samples = {f"{tar:05d}{number % PER_TAR:04d}": img2dataset_sample(number) for number in numbers}
        write_tar(place, samples, pax=tar == 1)
    return folder


def test_every_sample_comes_once_as_it_was(tars: Path, tmp_path: Path) -> None:
    found = run_prepare(WebDatasetConfig(folder=str(tars), test_share=0.2), tmp_path / "data")
    assert 2 <= len(found["test"]) <= 16
    every = found["train"] + found["test"]
    assert sorted(record["captions"][0] for record in every) == sorted(f"picture {n}" for n in range(40))
    for record in every:
        number = int(record["captions"][0].split()[1])
        assert record["image"] == ("jpg", picture(number, "JPEG"))  # not compressed once more
        assert record["record"]["url"] == f"http://{number}.jpg"
        assert record["key"] == f"{number // 10:05d}/{number // 10:05d}{number % 10:04d}"
    info = dataset_info(tmp_path / "data" / "train")
    assert info.caption_key == "captions" and len(info.shards) == -(-len(found["train"]) // 7)


@pytest.mark.parametrize(
    ("key", "captions"),
    [("caption", ["picture 7"]), ("alt", ["one", "alt 7"]), ("txt", ["picture 7"])],
)
def test_the_caption_key_chooses(tars: Path, tmp_path: Path, key: str, captions: list[str]) -> None:
    config = WebDatasetConfig(folder=str(tars), test_share=0.2, caption_key=key)
    found = run_prepare(config, tmp_path / "data", vocabulary_size=None)
    (record,) = [r for r in found["train"] + found["test"] if r["record"]["url"] == "http://7.jpg"]
    assert record["captions"] == captions


def test_a_folder_of_test_tars(tars: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "val" / "0.tar", {f"{n}": img2dataset_sample(n) for n in (50, 51)})
    config = WebDatasetConfig(folder=str(tars), test_folder=str(tmp_path / "val"))
    found = run_prepare(config, tmp_path / "data", vocabulary_size=None)
    assert len(found["train"]) == 40
    assert [record["captions"] for record in found["test"]] == [["picture 50"], ["picture 51"]]


class Reader(SampleEncoder):
    """What a training reads: caption and colour."""

    def __init__(self, caption_key: str) -> None:
        self.caption_key = caption_key

    def encode(self, key, fields, form, rng):
        return captions_field(fields, self.caption_key)[0], int(image_field(fields).mean().round())

    def collate(self, rows):
        return list(rows)


def test_training_reads_the_tars_as_they_are(tars: Path, tmp_path: Path) -> None:
    config = WebDatasetConfig(folder=str(tars), rewrite=False)
    found = run_prepare(config, tmp_path / "data")
    train, test = tmp_path / "data" / "train", tmp_path / "data" / "test"
    links = sorted(train.glob("*.tar"))
    assert len(links) == TARS - 1 and all(link.is_symlink() for link in links)
    assert len(found["test"]) == PER_TAR and not any(path.is_symlink() for path in test.glob("*.tar"))
    info = dataset_info(train)
    assert info.samples == 30 and info.caption_key == "txt"
    assert sum(1 for _ in read_shards(train)) == 30
    loader_config = LoaderConfig(batch_size=6, workers=0, shuffle_buffer=8)
    loader = build_loader([Source(path=str(train))], Reader(info.caption_key), loader_config, seed=0)
    epochs = [sample for _ in range(10) for sample in next(loader)]
    held_out = {record["captions"][0] for record in found["test"]}
    assert {caption for caption, _ in epochs} == {f"picture {n}" for n in range(40)} - held_out
    assert all(abs(colour - int(caption.split()[1])) <= 1 for caption, colour in epochs)
    before = (train / "dataset.json").stat().st_mtime_ns
    run_prepare(config, tmp_path / "data")
    assert (train / "dataset.json").stat().st_mtime_ns == before


def test_the_test_set_of_linked_tars_is_limited_by_number(tars: Path, tmp_path: Path) -> None:
    """Half of hundreds of millions is no test set."""
    for most, whole_tars in ((4, 1), (15, 2), (1000, 2)):
        config = WebDatasetConfig(folder=str(tars), rewrite=False, test_share=0.5, test_pictures=most)
        data = tmp_path / f"data_{most}"
        found = run_prepare(config, data, vocabulary_size=None)
        assert len(found["test"]) == min(most, PER_TAR * whole_tars)
        assert len(list((data / "train").glob("*.tar"))) == TARS - whole_tars
        trained = {record["url"] for record in found["train"]}
        assert not trained & {record["record"]["url"] for record in found["test"]}
    named = WebDatasetConfig(folder=str(tars), test_folder=str(tars / "part"), rewrite=False, test_pictures=4)
    assert len(run_prepare(named, tmp_path / "named", vocabulary_size=None)["test"]) == PER_TAR


def test_training_from_tars_with_endings_in_capitals(tmp_path: Path) -> None:
    samples = {
        f"{n}": {field.upper(): content for field, content in img2dataset_sample(n).items()} for n in range(4)
    }
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / "tars" / name, samples)
    config = WebDatasetConfig(folder=str(tmp_path / "tars"), rewrite=False)
    run_prepare(config, tmp_path / "data", vocabulary_size=None)
    train = tmp_path / "data" / "train"
    loader_config = LoaderConfig(batch_size=4, workers=0, shuffle_buffer=1)
    loader = build_loader([Source(path=str(train))], Reader("txt"), loader_config, seed=0)
    assert {caption for caption, _ in next(loader)} == {f"picture {n}" for n in range(4)}


def test_keys_that_repeat_are_told_where_the_tars_are_linked(tars: Path, tmp_path: Path) -> None:
    write_tar(tars / "99999.tar", {"000010003": img2dataset_sample(99)})
    test = tmp_path / "test"
    write_tar(test / "0.tar", {"0": img2dataset_sample(0)})
    linked = WebDatasetConfig(folder=str(tars), test_folder=str(test), rewrite=False)
    with pytest.raises(
        UserError, match="two samples of the tars have the key '000010003'.*source.rewrite=true"
    ):
        run_prepare(linked, tmp_path / "data", vocabulary_size=None)
    found = run_prepare(
        WebDatasetConfig(folder=str(tars), test_folder=str(test)), tmp_path / "data", vocabulary_size=None
    )
    assert len(found["train"]) == TARS * PER_TAR + 1


def test_one_tar_cannot_be_set_apart_from_itself(tars: Path, tmp_path: Path) -> None:
    config = WebDatasetConfig(folder=str(tars / "part"), rewrite=False)
    with pytest.raises(UserError, match="has one tar alone.*give source.test_folder"):
        run_prepare(config, tmp_path / "data")


def test_mistakes_are_told_before_anything_is_read(tars: Path, tmp_path: Path) -> None:
    def told(match: str, **settings: object) -> None:
        with pytest.raises(UserError, match=match):
            run_prepare(WebDatasetConfig(**{"folder": str(tars), **settings}), tmp_path / "data")
        assert not (tmp_path / "data" / "train").exists()

    told("source.folder is not set", folder=None)
    with pytest.raises(UserError, match="source.test_pictures is 0; a test needs at least 1"):
        WebDatasetConfig(folder=str(tars), test_pictures=0)
    told("there is no folder nowhere", folder="nowhere")
    (tmp_path / "empty").mkdir()
    told(r"no .tar files in .*empty.*source=image_folder", folder=str(tmp_path / "empty"))
    told(
        r"no caption .*source.caption_key is TEXT, and it has txt, url, caption, alt, status",
        caption_key="TEXT",
    )
    write_tar(tmp_path / "texts" / "0.tar", {"0": {"txt": b"a"}})
    told("0.tar holds no pictures", folder=str(tmp_path / "texts"))
    whole = (tars / "00002.tar").read_bytes()
    (tars / "00002.tar").write_bytes(whole[: len(whole) // 2])
    told("00002.tar is cut off in the middle")


def test_a_few_unusable_samples_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = {f"{n:03d}": img2dataset_sample(n) for n in range(60)}
    samples["003"] = img2dataset_sample(3, txt=b" ")
    samples["004"] = img2dataset_sample(4, jpg=None)
    write_tar(tmp_path / "tars" / "0.tar", samples)
    config = WebDatasetConfig(folder=str(tmp_path / "tars"), test_share=0.3, max_bad_share=0.05)
    found = run_prepare(config, tmp_path / "data", vocabulary_size=None)
    assert len(found["train"]) + len(found["test"]) == 58
    out = capsys.readouterr().out
    assert "2 of 60 pictures are left out: 0/003: no txt" in out and "0/004: no picture among" in out


def test_endings_in_capitals(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a/b": {"JPG": picture(1, "JPEG"), "TXT": b"caption"}})
    ((key, fields),) = tar_samples(tmp_path / "0.tar")
    assert key == "a/b" and captions_field(fields, "txt") == ["caption"]
    assert np.abs(image_field(fields).astype(int) - 1).max() <= 1
