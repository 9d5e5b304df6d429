"""Stored samples -> documents -> packed batches: forms, blank prompts, bad samples, the loader."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lm import CAPTIONS, POSITIONS, QUESTIONS, D, K, random_codes, sample_fields, write_codes
from transformers import PreTrainedTokenizerFast

from vilau_common.data.encoder import BadSample
from vilau_common.data.loader import LoaderConfig
from vilau_common.errors import UserError
from vilau_unified_lm.data import DocumentDataConfig, DocumentEncoder, MixtureConfig, document_loader
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.packing import IGNORE
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin

TOWER = CodesOrigin(fingerprint="0123456789abcdef", codebook_size=K, depth=D, grid=(3, 3))


def data_config(directory: Path | str = "", **changes: Any) -> DocumentDataConfig:
    settings: dict[str, Any] = {
        "directory": str(directory),
        "mixture": MixtureConfig(),
        "row_length": 80,
        "questions_per_document": 3,
        "loader": LoaderConfig(
            batch_size=2, workers=0, shuffle_buffer=20, packing_buffer=30, max_bad_share=0.5
        ),
    }
    return DocumentDataConfig(**{**settings, **changes})


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> DocumentEncoder:
    return DocumentEncoder(data_config(), tokenizer, vocabulary)


def variants(count: int = 1) -> np.ndarray:
    return np.stack([random_codes(seed) for seed in range(count)])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def written(document: Document, encoder: DocumentEncoder, supervised: bool | None = None) -> str:
    """Its texts, special tokens included; of the supervised or other segments only where that is asked."""
    ids = [
        id_
        for segment in document.segments
        if isinstance(segment, TextSegment) and supervised in (None, segment.supervised)
        for id_ in segment.ids
    ]
    return str(encoder.builder.tokenizer.decode(ids))


def picture(document: Document) -> ImageSegment:
    (image,) = [segment for segment in document.segments if isinstance(segment, ImageSegment)]
    return image


# --- forms ------------------------------------------------------------------------------------------------------


def test_text_to_image_takes_any_caption_and_any_variant(encoder: DocumentEncoder) -> None:
    fields = sample_fields(variants(3))
    seen_captions, seen_codes = Counter(), Counter()
    for seed in range(100):
        document = encoder.encode("0", fields, "text_to_image", rng(seed))
        seen_captions[written(document, encoder, supervised=False)] += 1
        assert picture(document).supervised and picture(document).codes.shape == (POSITIONS, D)
        assert picture(document).codes.dtype == np.int64
        seen_codes[picture(document).codes.tobytes()] += 1
    assert set(seen_captions) == {f"<s> {caption}<image_start>" for caption in CAPTIONS} | {
        "<s><image_start>"
    }
    assert set(seen_codes) == {codes.tobytes() for codes in variants(3)}


def test_image_to_text_answers_with_the_first_caption(encoder: DocumentEncoder) -> None:
    for seed in range(10):
        document = encoder.encode("0", sample_fields(variants()), "image_to_text", rng(seed))
        assert written(document, encoder, supervised=True).split("</s>")[0].strip() == CAPTIONS[0]
        assert not picture(document).supervised


def test_questions_come_in_any_order_with_their_own_answers(
    encoder: DocumentEncoder, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    fields = sample_fields(variants())
    pairs = {f"{turn['question']}\n {turn['answer']}</s>" for turn in QUESTIONS}
    orders = set()
    for seed in range(30):
        text = written(encoder.encode("0", fields, "questions", rng(seed)), encoder)
        turns = text.split("<image_end>")[1].split("</s>")[:-1]
        assert {f"{turn.strip()}</s>" for turn in turns} == pairs
        orders.add(tuple(turns))
    assert len(orders) == 6
    document = encoder.encode("0", fields, "questions", rng())
    assert {segment.branch for segment in document.segments} == {0, 1, 2, 3}
    conversation = DocumentEncoder(data_config(independent_questions=False), tokenizer, vocabulary)
    for seed in range(5):
        document = conversation.encode("0", fields, "questions", rng(seed))
        assert {segment.branch for segment in document.segments} == {0}
        text = written(document, conversation).split("<image_end>")[1]
        answers = [turn.split("\n ")[1] for turn in text.split("</s>")[:-1]]
        assert answers == [turn["answer"] for turn in QUESTIONS]
    cut = DocumentEncoder(
        data_config(independent_questions=False, questions_per_document=2), tokenizer, vocabulary
    )
    assert written(cut.encode("0", fields, "questions", rng()), cut).count("</s>") == 2
    single = DocumentEncoder(data_config(questions_per_document=1), tokenizer, vocabulary)
    asked = {written(single.encode("0", fields, "questions", rng(seed)), single) for seed in range(30)}
    assert len(asked) == 3 and all(text.count("</s>") == 1 for text in asked)


def test_text_takes_any_text_and_needs_no_picture(encoder: DocumentEncoder) -> None:
    fields = {"json": sample_fields(variants())["json"]}
    texts = {written(encoder.encode("0", fields, "text", rng(seed)), encoder) for seed in range(20)}
    assert texts == {f"<s> {text}</s>" for text in CAPTIONS[:2]}


def test_encoding_depends_on_its_arguments_alone(encoder: DocumentEncoder) -> None:
    """A resumed run encodes the buffers again and must come to the same."""
    fields = sample_fields(variants(3))
    for form in ("text_to_image", "image_to_text", "questions", "text"):
        first, second = (encoder.encode("0", fields, form, rng(5)) for _ in range(2))
        assert written(first, encoder) == written(second, encoder)
        if form != "text":
            assert (picture(first).codes == picture(second).codes).all()


# --- blank prompts ----------------------------------------------------------------------------------------------


def test_a_blank_prompt_is_the_one_that_guidance_uses(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    encoder = DocumentEncoder(data_config(blank_share=1.0), tokenizer, vocabulary)
    for seed in range(20):
        document = encoder.encode("0", sample_fields(variants()), "text_to_image", rng(seed))
        expected = encoder.builder.text_to_image("", random_codes(0))
        for segment, wanted in zip(document.segments, expected.segments, strict=True):
            assert segment.supervised == wanted.supervised
            if isinstance(segment, TextSegment):
                assert segment == wanted
        assert (picture(document).codes == picture(expected).codes).all()
        assert document.segments[0] == encoder.builder.drawing_prompt("").segments[0]
        assert len(document) == 1 + 1 + POSITIONS + 1 + 1


def test_a_tenth_of_the_prompts_are_blank(encoder: DocumentEncoder) -> None:
    assert encoder.config.blank_share == 0.1
    fields = sample_fields(variants())
    stream = rng()
    count = 3000
    blank = sum(
        len(encoder.encode("0", fields, "text_to_image", stream)) == POSITIONS + 4 for _ in range(count)
    )
    assert 0.08 < blank / count < 0.12  # nearly four standard deviations


def test_no_prompt_is_blank_where_none_should_be_and_no_other_form_ever(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    fields = sample_fields(variants(), captions=CAPTIONS[:1])
    none = DocumentEncoder(data_config(blank_share=0.0), tokenizer, vocabulary)
    all_ = DocumentEncoder(data_config(blank_share=1.0), tokenizer, vocabulary)
    for seed in range(50):
        document = none.encode("0", fields, "text_to_image", rng(seed))
        assert CAPTIONS[0] in written(document, none)
        assert CAPTIONS[0] in written(all_.encode("0", fields, "image_to_text", rng(seed)), all_)


# --- bad samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ("text_to_image", {"captions": []}, "no captions"),
        ("text_to_image", {"captions": None}, "no captions"),
        ("image_to_text", {"captions": [""]}, "no captions"),
        ("questions", {"questions": []}, "no questions"),
        ("questions", {"questions": None}, "no questions"),
        ("questions", {"questions": ["how many?"]}, "no questions: expected"),
        ("questions", {"questions": [*QUESTIONS, {"question": "how many?"}]}, "no questions: expected"),
        ("questions", {"questions": [{"question": "how many?", "answer": 2}]}, "no questions: expected"),
        ("text", {"texts": []}, "no texts"),
        ("text", {"texts": ["a star " * 80]}, r"a text document of \d+ places exceeds the row's 80"),
    ],
)
def test_samples_without_what_a_form_needs_are_bad(
    encoder: DocumentEncoder, form: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadSample, match=reason):
        encoder.encode("0", sample_fields(variants(), **changes), form, rng())


def test_codes_that_do_not_fit_the_tower_are_bad(encoder: DocumentEncoder) -> None:
    too_large = variants()
    too_large[0, 2, 1, 3] = K
    with pytest.raises(BadSample, match=f"code {K} is out of range: the codebook has {K} entries"):
        encoder.encode("0", sample_fields(too_large), "text_to_image", rng())
    with pytest.raises(BadSample, match=f"{D - 1} codes a position, not {D}"):
        encoder.encode("0", sample_fields(variants()[..., :-1]), "text_to_image", rng())
    with pytest.raises(BadSample, match="no field 'codes.npy'"):
        encoder.encode("0", {"json": sample_fields(variants())["json"]}, "text_to_image", rng())


# --- the loader -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples, every tenth with a code out of range; the caption names the sample."""
    directory = tmp_path_factory.mktemp("codes")
    samples = []
    for number in range(60):
        codes = random_codes(number)[None]
        if number % 10 == 3:
            codes[0, 0, 0, 0] = K
        samples.append(sample_fields(codes, captions=[CAPTIONS[number % 4]], texts=[CAPTIONS[number % 4]]))
    write_codes(directory / "train", samples, TOWER.to_info())
    return directory


def test_batches_hold_whole_documents_and_bad_samples_are_counted(
    shards: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    mixture = MixtureConfig(text_to_image=1.0, image_to_text=0.0, questions=0.0, text=0.0)
    config = data_config(shards, mixture=mixture)
    loader = document_loader(config, tokenizer, vocabulary, TOWER, seed=0, log_directory=tmp_path)
    pictures, places = 0, 0
    for _, batch in zip(range(20), loader, strict=False):
        assert batch.token_ids.shape == (2, 80)
        assert ((batch.codes >= 0) & (batch.codes < K)).all()
        assert len(batch.codes) == batch.visual_mask.sum()
        count = int(batch.document_ids.max(dim=1).values.sum())
        assert len(batch.codes) == POSITIONS * count  # whole pictures, one a document
        assert (batch.grid_index.view(count, POSITIONS) == torch.arange(POSITIONS)).all()
        assert (batch.visual_targets != IGNORE).sum() == len(batch.codes)
        pictures += count
        places += int((batch.document_ids > 0).sum())
    assert places / (20 * 2 * 80) > 0.6  # of so short a row; `test_packing` judges longer ones
    # One in ten; packed documents that wait in the buffer have been seen too.
    assert loader.bad_samples / loader.samples_seen == pytest.approx(0.1, abs=0.04)
    assert loader.samples_seen - loader.bad_samples >= pictures
    logged = [json.loads(line) for line in (tmp_path / "bad_samples_0.jsonl").read_text().splitlines()]
    assert len(logged) == loader.bad_samples
    assert {int(record["key"]) % 10 for record in logged} == {3}
    assert all("out of range" in record["reason"] and record["shard"] for record in logged)


def test_forms_are_mixed_by_their_shares(
    shards: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    mixture = MixtureConfig(text_to_image=3.0, image_to_text=0.0, questions=0.0, text=1.0)
    config = data_config(shards, mixture=mixture)
    loader = document_loader(config, tokenizer, vocabulary, TOWER, seed=0, log_directory=tmp_path)
    pictures = documents = 0
    for _, batch in zip(range(60), loader, strict=False):
        documents += int(batch.document_ids.max(dim=1).values.sum())
        pictures += len(batch.codes) // POSITIONS
        assert (batch.visual_targets != IGNORE).sum() == len(batch.codes)  # no picture is only looked at
    share = 3 * 0.9 / (3 * 0.9 + 1)  # a tenth of the pictures is bad, no text is
    assert pictures / documents == pytest.approx(share, abs=0.08)


def test_long_and_short_documents_share_batches(encoder: DocumentEncoder) -> None:
    """First-fit decreasing puts the longest first; a batch of them alone would train on one form only."""
    long, short = encoder.builder.text("a star " * 25), encoder.builder.text_to_image("", random_codes(0))
    assert len(long) > encoder.config.row_length / 2 > len(short)
    documents = [long, *[short] * 8] * 40
    rows = encoder.select_packs(documents)
    assert sorted(index for row in rows for index in row) == list(range(len(documents)))
    assert rows == encoder.select_packs(documents)  # a resumed run packs as the first did
    having = [any(documents[index] is long for index in row) for row in rows]
    first = having[: len(having) // 2]
    assert 0.3 < sum(first) / sum(having) < 0.7


def test_text_alone_makes_batches_without_pictures(
    shards: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    mixture = MixtureConfig(text_to_image=0.0, image_to_text=0.0, questions=0.0, text=1.0)
    config = data_config(shards, mixture=mixture)
    loader = document_loader(config, tokenizer, vocabulary, TOWER, seed=0, log_directory=tmp_path)
    batch = next(loader)
    assert batch.codes.shape == (0, D) and not batch.visual_mask.any()
    assert (batch.text_targets != IGNORE).any()


def test_codes_of_another_tower_are_refused(
    shards: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    other = replace(TOWER, fingerprint="fedcba", grid=(4, 4))
    sentence = (
        f"were made with the tower {TOWER.fingerprint}, but this LM's tower is fedcba "
        r"\(grid \[3, 3\], not \[4, 4\]\); run `vilau tokenize`"
    )
    with pytest.raises(UserError, match=sentence):
        document_loader(data_config(shards), tokenizer, vocabulary, other, seed=0, log_directory=tmp_path)


def test_missing_codes_are_told(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="data set not prepared: .*; `vilau tokenize` makes it"):
        document_loader(data_config(tmp_path), tokenizer, vocabulary, TOWER, seed=0, log_directory=tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blank_share": 1.5}, "data.blank_share is 1.5"),
        ({"questions_per_document": 0}, "data.questions_per_document is 0"),
        ({"loader": LoaderConfig(batch_size=2)}, "data.loader.packing_buffer is 0"),
        (
            {"mixture": MixtureConfig(text_to_image=0, image_to_text=0, questions=0, text=0)},
            "data.mixture gives no",
        ),
        ({"mixture": MixtureConfig(text=-0.1)}, "data.mixture.text is -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    data_config().validate()
    with pytest.raises(UserError, match=sentence):
        replace(data_config(), **changes).validate()
