"""Pictures become codes once: what is written, when it is written again, and what is left out."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tower import tiny_tower
from transformers import SiglipModel

from vilau_common.data.augmentation import AugmentationConfig
from vilau_common.data.fields import (
    CODES_FIELD,
    JSON_FIELD,
    codes_field,
    image_field,
    images_field,
    picture_fields,
    sample_codes,
)
from vilau_common.data.prepare import encode_png
from vilau_common.data.shards import ShardWriter, dataset_info, read_shards
from vilau_common.data.sources.linked import link_tars
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_common.pictures import centre_square
from vilau_vision_tower import tokenize as module
from vilau_vision_tower.tokenize import CodesOrigin, TokenizeConfig, tokenize, tower_fingerprint
from vilau_vision_tower.tower import VisionTower, load_tower


@pytest.fixture
def config(scenes: Path, tower: VisionTower, tmp_path: Path) -> TokenizeConfig:
    tower.save_pretrained(tmp_path / "tower" / "model")
    return TokenizeConfig(
        tower_directory=str(tmp_path / "tower"),
        data=str(scenes),
        directory=str(tmp_path / "codes"),
        splits=["train", "test"],
        batch_size=15,
        samples_per_shard=40,
    )


def with_samples(config: TokenizeConfig, directory: Path, samples: list[dict[str, bytes]]) -> TokenizeConfig:
    """The same on another data set."""
    with ShardWriter(directory / "train", {}, samples_per_shard=100) as writer:
        for number, fields in enumerate(samples):
            writer.write(f"{number:04d}", fields)
    return dataclasses.replace(config, data=str(directory), splits=["train"])


def sample(size: int = 32, **record: Any) -> dict[str, bytes]:
    image = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
    return {"png": encode_png(image), JSON_FIELD: json.dumps({"captions": ["a"], **record}).encode()}


def test_codes_are_the_towers_and_records_as_they_were(config: TokenizeConfig) -> None:
    tokenize(config)
    tower = load_tower(config.tower_directory)
    for split, count in (("train", 64), ("test", 12)):
        source, written = (list(read_shards(Path(root) / split)) for root in (config.data, config.directory))
        assert len(written) == count
        codes = tower.encode(to_tensor(np.stack([image_field(fields) for _, fields in source])))
        for (key, fields), (written_key, written_fields), expected in zip(
            source, written, codes, strict=True
        ):
            assert written_key == key
            assert written_fields.keys() == {CODES_FIELD, JSON_FIELD}
            assert written_fields[JSON_FIELD] == fields[JSON_FIELD]
            stack = codes_field(written_fields, tower.codebook_size)
            assert stack.dtype == np.uint16
            assert stack.shape == (1, *tower.grid, tower.depth)
            assert torch.equal(torch.from_numpy(stack[0].astype(np.int64)), expected)
        info = dataset_info(Path(config.directory) / split).info
        assert info["tower"] == tower_fingerprint(config.tower_directory)


def test_variants_are_the_picture_and_changed_ones(config: TokenizeConfig) -> None:
    tokenize(config)
    flips = AugmentationConfig(horizontal_flip=True)
    several = dataclasses.replace(
        config, directory=config.directory + "_several", variants=6, augmentation=flips
    )
    tokenize(several)
    tower = load_tower(config.tower_directory)
    plain, varied, source = (
        list(read_shards(Path(root) / "test")) for root in (config.directory, several.directory, config.data)
    )
    mirrored = to_tensor(np.stack([image_field(fields)[:, ::-1] for _, fields in source]))
    seen = set()
    for (_, one), (_, many), codes in zip(plain, varied, tower.encode(mirrored).numpy(), strict=True):
        stack = codes_field(many, tower.codebook_size)
        assert stack.shape == (6, *tower.grid, tower.depth)
        original = codes_field(one, tower.codebook_size)[0]
        assert (stack[0] == original).all()
        for version in stack[1:]:
            flipped = bool((version == codes).all())
            assert flipped or (version == original).all()
            seen.add(flipped)
    assert seen == {True, False}
    before = dataset_info(Path(several.directory) / "test")
    tokenize(dataclasses.replace(several, variants=5))  # another setting writes anew
    assert dataset_info(Path(several.directory) / "test").fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("variants", "flip", "complaint"),
    [(0, False, "at least 1"), (2, False, "augmentation changes nothing"), (1, True, "set variants to 2")],
)
def test_variants_that_make_no_sense_are_refused(
    config: TokenizeConfig, variants: int, flip: bool, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        tokenize(
            dataclasses.replace(
                config, variants=variants, augmentation=AugmentationConfig(horizontal_flip=flip)
            )
        )
    assert not Path(config.directory).exists()


def test_a_second_time_it_does_nothing(config: TokenizeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize(config)
    monkeypatch.setattr(module, "load_tower", lambda directory: pytest.fail("the tower was loaded again"))
    tokenize(config)


def test_what_is_missing_is_written(config: TokenizeConfig) -> None:
    tokenize(dataclasses.replace(config, splits=["train"]))
    assert not (Path(config.directory) / "test").exists()
    tokenize(config)
    assert dataset_info(Path(config.directory) / "test").samples == 12


def test_another_tower_writes_anew(config: TokenizeConfig, clip: SiglipModel) -> None:
    tokenize(config)
    before = dataset_info(Path(config.directory) / "train")
    tiny_tower(clip).save_pretrained(Path(config.tower_directory) / "model")  # other codebooks
    tokenize(config)
    after = dataset_info(Path(config.directory) / "train")
    assert after.fingerprint != before.fingerprint
    assert after.info["tower"] != before.info["tower"]
    assert after.info["data"] == before.info["data"]


def test_other_pictures_are_written_anew(config: TokenizeConfig, tmp_path: Path) -> None:
    tokenize(with_samples(config, tmp_path / "first", [sample()]))
    tokenize(with_samples(config, tmp_path / "second", [sample(), sample()]))
    assert dataset_info(Path(config.directory) / "train").samples == 2


def test_the_batch_size_changes_no_code(config: TokenizeConfig) -> None:
    tokenize(config)
    alone = dataclasses.replace(config, directory=config.directory + "_alone", batch_size=1)
    tokenize(alone)
    first, second = (dataset_info(Path(each.directory) / "test") for each in (config, alone))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(
    "bad",
    [
        {**sample(), "png": b"nothing"},
        {JSON_FIELD: sample()[JSON_FIELD]},
        {"png": sample()["png"]},
        {**sample(), JSON_FIELD: b"{"},
    ],
    ids=["damaged", "no picture", "no record", "damaged record"],
)
def test_bad_samples_are_left_out_and_told(
    config: TokenizeConfig, tmp_path: Path, bad: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_samples(config, tmp_path / "data", [sample(), bad, sample(), sample()])
    tokenize(dataclasses.replace(config, max_bad_share=0.3))
    keys = [key for key, _ in read_shards(Path(config.directory) / "train")]
    assert keys == ["0000", "0002", "0003"]
    assert "1 of 4 samples" in capsys.readouterr().out


def several(count: int) -> dict[str, bytes]:
    """A sample of so many pictures, as `vilau prepare` writes it."""
    rng = np.random.default_rng(count)
    pictures = [
        ("png", encode_png(rng.integers(256, size=(32, 32, 3), dtype=np.uint8))) for _ in range(count)
    ]
    record = {"conversation": [], "pictures": count}
    return {**picture_fields(pictures), JSON_FIELD: json.dumps(record).encode()}


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_all_pictures_of_a_sample_become_codes(
    config: TokenizeConfig, tmp_path: Path, batch_size: int
) -> None:
    samples = [several(2), several(0), several(5), sample(), several(1), several(0)]
    flips = AugmentationConfig(horizontal_flip=True)
    config = with_samples(config, tmp_path / "data", samples)
    tokenize(dataclasses.replace(config, batch_size=batch_size, variants=6, augmentation=flips))
    tower = load_tower(config.tower_directory)
    written = [fields for _, fields in read_shards(Path(config.directory) / "train")]
    assert [fields[JSON_FIELD] for fields in written] == [fields[JSON_FIELD] for fields in samples]
    for fields, source in zip(written, samples, strict=True):
        record = json.loads(source[JSON_FIELD])
        images = images_field(source, record)
        codes = sample_codes(fields, record, tower.codebook_size)
        assert len(codes) == len(images)
        if not images:
            assert fields.keys() == {JSON_FIELD}
            continue
        assert codes.shape == (len(images), 6, *tower.grid, tower.depth)
        stored = np.load(io.BytesIO(fields[CODES_FIELD]))
        assert stored.ndim == (4 if len(images) == 1 else 5)  # those of one picture as ever
        plain, mirrored = (
            tower.encode(to_tensor(np.stack([image[:, ::step] for image in images]))).numpy()
            for step in (1, -1)
        )
        assert (codes[:, 0] == plain).all()
        for variant in range(1, 6):  # all of a sample's pictures are changed alike
            assert (codes[:, variant] == plain).all() or (codes[:, variant] == mirrored).all()


def test_samples_whose_pictures_are_not_all_there_are_left_out(
    config: TokenizeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = several(3)
    del lacking["1.png"]
    config = with_samples(config, tmp_path / "data", [several(3), lacking, several(0), sample()])
    tokenize(dataclasses.replace(config, max_bad_share=0.3))
    assert [key for key, _ in read_shards(Path(config.directory) / "train")] == ["0000", "0002", "0003"]
    assert "0001: 2 pictures, but its record tells of 3" in capsys.readouterr().out


def test_pictures_of_another_size_are_fitted(config: TokenizeConfig, tmp_path: Path) -> None:
    config = with_samples(config, tmp_path / "data", [sample(size=45)])
    tokenize(config)
    ((_, fields),) = read_shards(Path(config.directory) / "train")
    tower = load_tower(config.tower_directory)
    ((_, source),) = read_shards(tmp_path / "data" / "train")
    codes = tower.encode(to_tensor(centre_square(image_field(source), tower.image_size)[None]))
    assert torch.equal(torch.from_numpy(codes_field(fields, tower.codebook_size).astype(np.int64)), codes)


def test_captions_of_others_go_where_ours_are(config: TokenizeConfig, tmp_path: Path) -> None:
    fields = {**sample(), JSON_FIELD: b'{"url": "u"}', "txt": b"a caption"}
    with ShardWriter(tmp_path / "data" / "train", {"caption_key": "txt"}, samples_per_shard=9) as writer:
        writer.write("0", fields)
    tokenize(dataclasses.replace(config, data=str(tmp_path / "data"), splits=["train"]))
    ((_, written),) = read_shards(Path(config.directory) / "train")
    expected = {"captions": ["a caption"], "key": "0", "record": {"url": "u"}}
    assert json.loads(written[JSON_FIELD]) == expected


def test_other_peoples_tars_become_codes_whatever_their_keys(config: TokenizeConfig, tmp_path: Path) -> None:
    """Keys hold what ours may not, endings are in capitals, and a caption needs no JSON beside it."""
    picture = sample()["png"]
    tars = {"0.tar": ["a/b c", "0__1"], "1.tar": ["ä/000"]}
    for name, keys in tars.items():
        with tarfile.open(tmp_path / name, "w") as archive:
            for key in keys:
                for field, content in {"PNG": picture, "txt": f"caption of {key}".encode()}.items():
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    link_tars([tmp_path / name for name in tars], tmp_path / "data" / "train", {}, "txt")
    tokenize(dataclasses.replace(config, data=str(tmp_path / "data"), splits=["train"]))
    written = list(read_shards(Path(config.directory) / "train"))
    assert [key for key, _ in written] == ["000000000", "000000001", "000000002"]
    for (_, fields), key in zip(written, ["a/b c", "0__1", "ä/000"], strict=True):
        assert json.loads(fields[JSON_FIELD]) == {"captions": [f"caption of {key}"], "key": key}


def test_a_gpu_is_used_where_there_is_one(config: TokenizeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    tower = load_tower(config.tower_directory)
    monkeypatch.setattr(module, "load_tower", lambda _: tower)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(VisionTower, "to", lambda self, device: asked.append(device) or self)
    tokenize(dataclasses.replace(config, splits=["test"]))
    assert asked == [torch.device("cuda")]


def test_threads_change_nothing_but_the_time(config: TokenizeConfig) -> None:
    tokenize(config)
    threads: set[int] = set()
    several = dataclasses.replace(config, directory=config.directory + "_several", threads=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "centre_square", lambda *given: threads.add(get_ident()) or centre_square(*given)
        )
        tokenize(several)
    assert get_ident() not in threads, "the tower's thread decodes nothing"
    first, second = (dataset_info(Path(each.directory) / "train") for each in (config, several))
    assert first.fingerprint == second.fingerprint


def test_codes_tell_the_tower_that_reads_them(config: TokenizeConfig) -> None:
    tokenize(config)
    tower = load_tower(config.tower_directory)
    origin = CodesOrigin.of(tower, tower_fingerprint(config.tower_directory))
    directory = Path(config.directory) / "test"
    info = dataset_info(directory).info
    origin.check(directory, info)
    for change, told in (
        ({"fingerprint": "0" * 16}, "other weights of the same shape"),
        ({"fingerprint": "0" * 16, "codebook_size": 999}, f"K {tower.codebook_size}, not 999"),
        ({"fingerprint": "0" * 16, "depth": 9}, f"D {tower.depth}, not 9"),
        ({"fingerprint": "0" * 16, "grid": (9, 9)}, r"grid \[4, 4\], not \[9, 9\]"),
    ):
        with pytest.raises(
            UserError, match=rf"tower {origin.fingerprint}, but .* tower is 0{{16}} \({told}\)"
        ):
            dataclasses.replace(origin, **change).check(directory, info)
    with pytest.raises(UserError, match="holds no codes .*; `vilau tokenize` makes codes"):
        origin.check(directory, {"world": "scenes"})


def test_too_many_bad_samples_stop_it(config: TokenizeConfig, tmp_path: Path) -> None:
    config = with_samples(config, tmp_path / "data", [sample(), {**sample(), "png": b"nothing"}])
    with pytest.raises(UserError, match=r"1 of 2 samples are bad.*the first: 0001: image field 'png'"):
        tokenize(config)
    assert not (Path(config.directory) / "train").exists()


def test_what_cannot_be_done_is_told_in_a_sentence(config: TokenizeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vision tower in .*; `make train-tower` trains one"):
        tokenize(dataclasses.replace(config, tower_directory=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="data set not prepared: .*nowhere"):
        tokenize(dataclasses.replace(config, data=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="threads is 0; at least 1"):
        tokenize(dataclasses.replace(config, threads=0))
    with pytest.raises(UserError, match="splits names none"):
        tokenize(dataclasses.replace(config, splits=[]))
    for size in (0, -1):
        with pytest.raises(UserError, match=f"batch_size is {size}; at least 1 picture"):
            tokenize(dataclasses.replace(config, batch_size=size))
    with pytest.raises(UserError, match="max_bad_share is -1; a share lies between 0 and 1"):
        tokenize(dataclasses.replace(config, max_bad_share=-1))
