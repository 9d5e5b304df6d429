"""Captioned images: what a batch holds, and which samples are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from vilau_common.data.augmentation import AugmentationConfig
from vilau_common.data.encoder import BadSample
from vilau_common.data.loader import LoaderConfig
from vilau_common.data.prepare import encode_png
from vilau_common.data.shards import ShardWriter, dataset_info
from vilau_common.errors import UserError
from vilau_vision_tower.clip import caption_ids, load_text_tokenizer
from vilau_vision_tower.data import CaptionDataConfig, CaptionedImageEncoder, caption_loader, read_images

SIZE, LENGTH = 8, 12


def encoder(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> CaptionedImageEncoder:
    config = CaptionDataConfig(
        **{"directory": "", "image_size": SIZE, "loader": LoaderConfig(batch_size=2), **settings}
    )
    return CaptionedImageEncoder(config, tokenizer, LENGTH)


def stored(shape: tuple[int, int] = (SIZE, SIZE), value: int = 0, **record: Any) -> dict[str, bytes]:
    """A sample's fields."""
    image = np.full((*shape, 3), value, np.uint8)
    return {
        "png": encode_png(image),
        "json": json.dumps({"captions": ["first", "second"], **record}).encode(),
    }


def encode(reader: CaptionedImageEncoder, fields: dict[str, bytes], seed: int = 0) -> Any:
    return reader.encode("key", fields, "", np.random.default_rng(seed))


def test_half_of_the_pictures_are_mirrored_where_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    image = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    fields = {**stored(), "png": encode_png(image)}
    reader = encoder(tokenizer, augmentation=AugmentationConfig(horizontal_flip=True))
    seen = [encode(reader, fields, seed).image for seed in range(100)]
    mirrored = sum(np.array_equal(each, image[:, ::-1]) for each in seen)
    assert 30 < mirrored < 70 and sum(np.array_equal(each, image) for each in seen) == 100 - mirrored
    assert all(np.array_equal(encode(encoder(tokenizer), fields, seed).image, image) for seed in range(20))


def test_a_batch_holds_images_captions_and_negatives(tokenizer: PreTrainedTokenizerFast) -> None:
    reader = encoder(tokenizer, hard_negatives=2)
    rows = [
        encode(reader, stored(value=0, captions=["one"], negatives=["not one"])),
        encode(reader, stored(value=255, captions=["two"], negatives=["not two"])),
    ]
    batch = reader.collate(rows)
    assert batch.images.shape == (2, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.images[0].unique().tolist() == [-1.0]
    assert batch.images[1].unique().tolist() == [1.0]
    assert torch.equal(batch.caption_ids, caption_ids(tokenizer, ["one", "two"], LENGTH))
    negatives = ["not one", "not one", "not two", "not two"]
    assert torch.equal(batch.negative_ids, caption_ids(tokenizer, negatives, LENGTH))


def test_without_negatives_their_place_is_empty(tokenizer: PreTrainedTokenizerFast) -> None:
    reader = encoder(tokenizer)
    assert reader.collate([encode(reader, stored())]).negative_ids.shape == (0, LENGTH)


def test_negatives_are_some_of_the_samples_own(tokenizer: PreTrainedTokenizerFast) -> None:
    reader, negatives = encoder(tokenizer, hard_negatives=3), [f"not {n}" for n in range(5)]
    chosen = [encode(reader, stored(negatives=negatives), seed).negatives for seed in range(20)]
    assert all(len(texts) == 3 and set(texts) <= set(negatives) for texts in chosen)
    assert len({tuple(texts) for texts in chosen}) > 1
    assert chosen[0] == encode(reader, stored(negatives=negatives), 0).negatives


def test_captions_are_the_first_or_any(tokenizer: PreTrainedTokenizerFast) -> None:
    first = encoder(tokenizer)
    assert {encode(first, stored(), seed).caption for seed in range(20)} == {"first"}
    any_one = encoder(tokenizer, random_caption=True)
    assert {encode(any_one, stored(), seed).caption for seed in range(20)} == {"first", "second"}


def test_pictures_of_other_sizes_are_fitted_and_those_that_fit_stay(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    image = np.random.default_rng(0).integers(256, size=(SIZE, SIZE + 4, 3), dtype=np.uint8)
    reader = encoder(tokenizer)
    wide = encode(reader, {**stored(), "png": encode_png(image)}).image
    assert np.array_equal(wide, image[:, 2:-2])
    fitting = encode(reader, {**stored(), "png": encode_png(image[:, :SIZE])}).image
    assert np.array_equal(fitting, image[:, :SIZE])
    assert encode(reader, stored(shape=(40, 17), value=9)).image.shape == (SIZE, SIZE, 3)
    assert (encode(reader, stored(shape=(3, 5), value=9)).image == 9).all()


def test_random_crops_take_the_stored_picture_not_its_centre(tokenizer: PreTrainedTokenizerFast) -> None:
    # Dark but for the outermost columns, which the centre square leaves out.
    image = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    image[:, : SIZE // 2] = image[:, -SIZE // 2 :] = 255
    fields = {**stored(), "png": encode_png(image)}
    reader = encoder(tokenizer, augmentation=AugmentationConfig(random_crop_scale=0.1))
    assert not encode(encoder(tokenizer), fields).image.any()
    seen = [encode(reader, fields, seed).image for seed in range(40)]
    assert any(each.any() for each in seen)
    assert np.array_equal(seen[7], encode(reader, fields, 7).image)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (stored(captions=[]), "no captions"),
        (stored(negatives=[]), "no negatives"),
        (stored(), "no negatives"),
        ({"json": stored()["json"]}, "no image"),
        ({"png": stored()["png"]}, "no field 'json'"),
        ({**stored(), "png": b"\x89PNG damaged"}, "cannot be decoded"),
    ],
)
def test_bad_samples_say_why(
    tokenizer: PreTrainedTokenizerFast, fields: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(BadSample, match=reason):
        encode(encoder(tokenizer, hard_negatives=1), fields)


def test_the_loader_gives_batches_of_a_prepared_data_set(scenes: Path, tmp_path: Path) -> None:
    tokenizer = load_text_tokenizer(scenes / "tokenizer")
    config = CaptionDataConfig(
        directory=str(scenes), image_size=32, hard_negatives=2, loader=LoaderConfig(batch_size=6, workers=0)
    )
    batch = next(iter(caption_loader(config, tokenizer, 80, seed=0, log_directory=tmp_path)))
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.amin() >= -1
    assert batch.images.amax() <= 1
    assert batch.caption_ids.shape == (6, 80)
    assert batch.negative_ids.shape == (12, 80)
    own = batch.caption_ids.repeat_interleave(2, 0)
    assert (own != batch.negative_ids).any(dim=1).all(), "no negative is the caption itself"


def test_a_data_set_that_is_not_prepared_is_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = CaptionDataConfig(directory=str(tmp_path), loader=LoaderConfig(batch_size=6, workers=0))
    with pytest.raises(UserError, match="data set not prepared: .*train has no dataset.json"):
        caption_loader(config, tokenizer, LENGTH, seed=0, log_directory=tmp_path)


def test_negatives_that_a_data_set_does_not_have_are_refused_at_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    loader = LoaderConfig(batch_size=1, workers=0, shuffle_buffer=1)
    config = CaptionDataConfig(directory=str(tmp_path), image_size=SIZE, hard_negatives=2, loader=loader)

    def write(record: dict[str, Any], **info: Any) -> None:
        with ShardWriter(tmp_path / "train", info, samples_per_shard=2) as writer:
            writer.write("0", stored(**record))
            writer.write("1", stored(negatives=["not"]))

    write({})
    with pytest.raises(
        UserError, match=r"data.hard_negatives is 2, but .*train have no negatives .*set data.hard_neg"
    ):
        caption_loader(config, tokenizer, LENGTH, seed=0, log_directory=tmp_path)
    # The samples of one's own may have some; of easy-VQA's, those few whose scene is not known have none.
    for record, info in (({"negatives": ["not"]}, {}), ({}, {"hard_negatives": 4})):
        write(record, **info)
        caption_loader(config, tokenizer, LENGTH, seed=0, log_directory=tmp_path).close()


def test_test_pictures_come_in_order(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "test", {}, samples_per_shard=2) as writer:
        for number in range(5):
            writer.write(f"{number}", stored(value=number))
    assert read_images(tmp_path / "test", size=SIZE)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert read_images(tmp_path / "test", 3, size=SIZE)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(read_images(tmp_path / "test", 99, size=4)) == dataset_info(tmp_path / "test").samples
    assert read_images(tmp_path / "test", 1, size=4).shape == (1, 4, 4, 3)


def test_a_damaged_test_picture_is_told(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "test", {}, samples_per_shard=2) as writer:
        writer.write("good", stored())
        writer.write("bad", {**stored(), "png": b"nothing"})
    with pytest.raises(UserError, match="sample bad of an evaluation set is damaged"):
        read_images(tmp_path / "test", size=SIZE)
