"""Picture shards -> documents with pixels: the unified LM's documents, and the right picture at every place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lm import CAPTIONS, IMAGE_SIZE, POSITIONS, QUESTIONS, D, K, random_codes, sample_fields
from tiny_vila import random_picture
from transformers import PreTrainedTokenizerFast

from vilau_common.data.encoder import BadSample
from vilau_common.data.loader import LoaderConfig
from vilau_common.data.shards import ShardWriter
from vilau_common.errors import UserError
from vilau_common.pictures import encode_png
from vilau_unified_lm.data import DocumentEncoder, MixtureConfig
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.vila.data import (
    PictureBatch,
    PictureDataConfig,
    PictureDocument,
    PictureEncoder,
    picture_loader,
    picture_places,
)
from vilau_unified_lm.vocabulary import Vocabulary


def data_config(directory: Path | str = "", **changes: Any) -> PictureDataConfig:
    settings: dict[str, Any] = {
        "directory": str(directory),
        "image_size": IMAGE_SIZE,
        "mixture": MixtureConfig(text_to_image=0.0),
        "row_length": 80,
        "questions_per_document": 3,
        "loader": LoaderConfig(
            batch_size=2, workers=0, shuffle_buffer=20, packing_buffer=30, max_bad_share=0.5
        ),
    }
    return PictureDataConfig(**{**settings, **changes})


def fields_of(seed: int, **changes: Any) -> dict[str, bytes]:
    record = {"captions": CAPTIONS, "questions": QUESTIONS, "texts": CAPTIONS[:2], **changes}
    return {"png": encode_png(random_picture(seed)), "json": json.dumps(record).encode()}


def write_pictures(directory: Path, info: Mapping[str, Any], count: int = 30) -> None:
    with ShardWriter(directory / "train", info, samples_per_shard=20) as writer:
        for number in range(count):
            writer.write(f"{number:04d}", fields_of(number))


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> PictureEncoder:
    return PictureEncoder(data_config(), tokenizer, 4)


def texts(document: Document) -> list[TextSegment]:
    return [segment for segment in document.segments if isinstance(segment, TextSegment)]


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("form", ["image_to_text", "questions", "text"])
def test_documents_are_the_unified_lms_with_places_for_pictures(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, form: str, independent: bool
) -> None:
    """The same sample and random numbers give the very texts, branches and loss masks that VILA-U trains on."""
    config = data_config(independent_questions=independent)
    unified = DocumentEncoder(config, tokenizer, vocabulary)
    vila = PictureEncoder(config, tokenizer, 4)
    codes = sample_fields(random_codes(0)[None])
    for seed in range(5):
        expected = unified.encode("0", codes, form, np.random.default_rng(seed))
        item = vila.encode("0", fields_of(0), form, np.random.default_rng(seed))
        assert texts(item.document) == texts(expected)
        images = [segment for segment in item.document.segments if isinstance(segment, ImageSegment)]
        assert len(images) == len(item.pictures) == (form != "text")
        assert len(item.document) == len(expected) - (POSITIONS - 4) * len(images)
        assert not any(image.supervised for image in images)
        assert all(np.array_equal(picture, random_picture(0)) for picture in item.pictures)


def test_pictures_stand_in_the_order_of_their_places(encoder: PictureEncoder) -> None:
    rng = np.random.default_rng(0)
    forms = ["text", "questions", "image_to_text", "text", "image_to_text"]
    items = [encoder.encode("0", fields_of(seed), form, rng) for seed, form in enumerate(forms)]
    batch = encoder.collate([items[2:4], items[:1], [items[4], items[1]]])
    assert batch.sequence.visual_mask.sum(dim=1).tolist() == [4, 0, 8]
    expected = np.stack([random_picture(seed) for seed in (2, 4, 1)])
    assert batch.pixels.dtype == torch.uint8 and np.array_equal(batch.pixels.numpy(), expected)


def test_a_document_shows_its_pictures_by_number(encoder: PictureEncoder) -> None:
    """Whatever their order in the sample, as often as they are named."""
    segments = [ImageSegment(picture_places(number, 4), supervised=False) for number in (1, 0, 1)]
    pictures = (random_picture(7), random_picture(8))
    batch = encoder.collate([[PictureDocument(Document(tuple(segments)), pictures)]])
    assert np.array_equal(batch.pixels.numpy(), np.stack([random_picture(n) for n in (8, 7, 8)]))


def test_conversations_and_videos_have_several_pictures(encoder: PictureEncoder) -> None:
    """One place of the record names them, in whatever order the text does."""
    rng = np.random.default_rng(0)
    turns = [
        {"role": "user", "text": "<video> and <image>, what changed?"},
        {"role": "assistant", "text": "the colour"},
    ]
    fields = {f"{number}.png": encode_png(random_picture(number)) for number in range(3)}
    record = {"conversation": turns, "pictures": 3, "videos": [2]}
    item = encoder.encode("0", {**fields, "json": json.dumps(record).encode()}, "conversation", rng)
    batch = encoder.collate([[item]])
    assert np.array_equal(batch.pixels.numpy(), np.stack([random_picture(n) for n in (1, 2, 0)]))
    drawn = [turns[0], {"role": "assistant", "text": "<image>"}]
    record = {"conversation": drawn, "pictures": 4, "videos": [2]}
    fields["3.png"] = fields["0.png"]
    with pytest.raises(BadSample, match="which VILA cannot draw"):
        encoder.encode("0", {**fields, "json": json.dumps(record).encode()}, "conversation", rng)


def test_long_texts_go_on_in_further_rows(encoder: PictureEncoder) -> None:
    item = encoder.encode("0", fields_of(0, texts=["a red circle " * 60]), "text", np.random.default_rng(0))
    parts = encoder.split(item)
    assert len(parts) > 1 and all(len(part.document) <= 80 and not part.pictures for part in parts)


def test_a_batch_of_texts_has_no_pictures(encoder: PictureEncoder) -> None:
    items = [encoder.encode("0", fields_of(0), "text", np.random.default_rng(seed)) for seed in range(2)]
    batch = encoder.collate([items])
    assert batch.pixels.shape == (0, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_pictures_of_other_sizes_are_brought_to_the_encoders(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PictureEncoder(data_config(image_size=12), tokenizer, 4)
    item = encoder.encode("0", fields_of(0), "image_to_text", np.random.default_rng(0))
    assert item.pictures[0].shape == (12, 12, 3)


def test_bad_samples_are_told(encoder: PictureEncoder) -> None:
    rng = np.random.default_rng(0)
    good = fields_of(0)
    for fields, form, sentence in (
        ({"json": good["json"]}, "questions", "no image"),
        ({**good, "png": good["png"][:50]}, "image_to_text", "image field 'png' cannot be decoded"),
        (fields_of(0, questions=[]), "questions", "no questions"),
        (fields_of(0, captions=["a red circle " * 30]), "image_to_text", "exceeds the row's 80"),
    ):
        with pytest.raises(BadSample, match=sentence):
            encoder.encode("0", fields, form, rng)
    # A text is read without its picture.
    assert not encoder.encode("0", {"json": good["json"]}, "text", rng).pictures


def test_the_loader_packs_and_repeats_itself(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_pictures(tmp_path, {})

    def batches(seed: int) -> list[PictureBatch]:
        loader = picture_loader(data_config(tmp_path), tokenizer, 4, seed, tmp_path)
        return [next(loader) for _ in range(4)]

    first, again, other = batches(0), batches(0), batches(1)
    for one, same in zip(first, again, strict=True):
        assert one.sequence.visual_mask.sum() == 4 * len(one.pixels) > 0
        assert torch.equal(one.pixels, same.pixels)
        assert torch.equal(one.sequence.token_ids, same.sequence.token_ids)
    assert any(
        not torch.equal(one.sequence.token_ids, b.sequence.token_ids)
        for one, b in zip(first, other, strict=True)
    )
    assert max(int(batch.sequence.document_ids.max()) for batch in first) > 1  # rows hold several documents


def test_codes_and_drawing_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_pictures(tmp_path, {"tower": "0123456789abcdef", "codebook_size": K, "depth": D}, count=2)
    with pytest.raises(UserError, match="holds codes, but VILA reads pictures: .*`vilau prepare`"):
        picture_loader(data_config(tmp_path), tokenizer, 4, 0, tmp_path)
    with pytest.raises(UserError, match="data set not prepared"):
        picture_loader(data_config(tmp_path / "nowhere"), tokenizer, 4, 0, tmp_path)
    with pytest.raises(UserError, match="data.mixture has the form text_to_image, but VILA .* draws none"):
        data_config(mixture=MixtureConfig()).validate()
