"""Stored samples -> documents -> packed batches: forms, blank prompts, bad samples, the loader."""

from __future__ import annotations

import copy
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
from vilau_unified_lm.data import (
    BlendConfig,
    DocumentDataConfig,
    DocumentEncoder,
    MixtureConfig,
    data_sources,
    document_loader,
)
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.packing import IGNORE
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin

TOWER = CodesOrigin(fingerprint="0123456789abcdef", codebook_size=K, depth=D, grid=(3, 3))


def part(form: str, weight: float = 1.0) -> BlendConfig:
    return BlendConfig(directory="a", form=form, weight=weight)


def data_config(directory: Path | str | None = "", **changes: Any) -> DocumentDataConfig:
    settings: dict[str, Any] = {
        "directory": None if directory is None else str(directory),
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


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "text": text} for n, text in enumerate(texts)]


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


def shown(document: Document) -> list[np.ndarray]:
    return [segment.codes for segment in document.segments if isinstance(segment, ImageSegment)]


def several(count: int, variants: int = 1) -> np.ndarray:
    """Codes of a sample's pictures, [N, V, 3, 3, D]."""
    codes = [[random_codes(10 * n + variant) for variant in range(variants)] for n in range(count)]
    return np.array(codes)


def roomy(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, **changes: Any) -> DocumentEncoder:
    settings = {"row_length": 300, "blank_share": 0.0, **changes}
    return DocumentEncoder(data_config(**settings), tokenizer, vocabulary)


def test_videos_are_the_frames_that_the_record_tells_of(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    encoder = roomy(tokenizer, vocabulary)
    codes = several(3, variants=4)
    fields = sample_fields(codes, videos=[3], pictures=3)
    seen = set()
    for seed in range(20):
        document = encoder.encode("0", fields, "text_to_video", rng(seed))
        frames = np.stack(shown(document)).reshape(3, 3, 3, D)
        (variant,) = [v for v in range(4) if (frames == codes[:, v]).all()]  # of one and the same version
        seen.add(variant)
        assert written(document, encoder, supervised=False).endswith("<video_start>")
        assert written(document, encoder, supervised=True) == "<video_end></s>"
    assert seen == {0, 1, 2, 3}
    asked = encoder.encode("0", fields, "video_to_text", rng())
    assert len(shown(asked)) == 3
    assert written(asked, encoder, supervised=True).strip() == f"{CAPTIONS[0]}</s>"
    blank = roomy(tokenizer, vocabulary, blank_share=1.0)
    assert len(blank.encode("0", fields, "text_to_video", rng())) == 1 + 1 + 3 * POSITIONS + 1 + 1


def test_edits_conversations_and_interleaved_documents_show_their_pictures_in_order(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    encoder = roomy(tokenizer, vocabulary)
    codes = several(4)
    expected = [list(image.reshape(POSITIONS, D).tolist()) for image in codes[:, 0]]
    edit = encoder.encode("0", sample_fields(codes[:2], instruction="a star"), "edit", rng())
    assert [image.tolist() for image in shown(edit)] == expected[:2]
    assert [s.supervised for s in edit.segments if isinstance(s, ImageSegment)] == [False, True]
    text = {"interleaved": "a star <image> and <image><image> no <image>"}
    for image_loss in (False, True):
        encoder = roomy(tokenizer, vocabulary, interleaved_image_loss=image_loss)
        document = encoder.encode("0", sample_fields(codes, **text), "interleaved", rng())
        assert [image.tolist() for image in shown(document)] == expected
        assert {s.supervised for s in document.segments if isinstance(s, ImageSegment)} == {image_loss}
    conversation = talk("<image> like <image>?", "no", "<video>", "yes")
    fields = sample_fields(codes, conversation=conversation, videos=[2], pictures=4)
    document = encoder.encode("0", fields, "conversation", rng())
    assert [image.tolist() for image in shown(document)] == expected
    assert [a.strip() for a in written(document, encoder, supervised=True).split("</s>")] == ["no", "yes", ""]


def test_a_conversation_needs_no_picture(encoder: DocumentEncoder) -> None:
    record = {"conversation": talk("is there a star?", "no"), "pictures": 0}
    document = encoder.encode("0", {"json": json.dumps(record).encode()}, "conversation", rng())
    assert not shown(document)
    assert written(document, encoder, supervised=True).strip() == "no</s>"


def test_conversations_that_the_template_refuses_are_bad(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    encoder = DocumentEncoder(data_config(), chatty, vocabulary)
    record = {"conversation": talk("a star", "no"), "pictures": 0}
    assert encoder.encode("0", {"json": json.dumps(record).encode()}, "conversation", rng())
    record["conversation"].insert(0, {"role": "system", "text": "be kind"})
    with pytest.raises(BadSample, match="no system, please"):
        encoder.encode("0", {"json": json.dumps(record).encode()}, "conversation", rng())


@pytest.mark.parametrize("form", ["text", "interleaved"])
def test_documents_longer_than_a_row_go_on_in_the_next(encoder: DocumentEncoder, form: str) -> None:
    text = "a star " * 120
    if form == "text":
        document = encoder.encode("0", sample_fields(variants(), texts=[text]), form, rng())
    else:
        said = f"{text[:300]}<image>{text[300:]}"
        document = encoder.encode("0", sample_fields(variants(), interleaved=said), form, rng())
    assert len(document) > 2 * encoder.config.row_length
    parts = encoder.split(document)
    assert all(len(part) <= encoder.config.row_length for part in parts)
    assert sum(len(part) for part in parts) == len(document) + len(parts) - 1  # each begins anew
    assert encoder.split(parts[0]) == (parts[0],)
    narrow = DocumentEncoder(
        data_config(row_length=POSITIONS + 2), encoder.builder.tokenizer, encoder.vocabulary
    )
    if form == "interleaved":
        with pytest.raises(BadSample, match=f"an image of {POSITIONS + 3} places exceeds the row's"):
            narrow.encode("0", sample_fields(variants(), interleaved=said), form, rng())


def test_every_form_of_the_mixture_is_there(encoder: DocumentEncoder) -> None:
    for form in vars(MixtureConfig()):
        assert callable(getattr(encoder.forms, form))


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
        ("image_to_text", {"captions": [" \n"]}, "an empty document: its caption is white space alone"),
        ("text_to_image", {"captions": [" "]}, "an empty document: its caption is white space alone"),
        ("questions", {"questions": [{"question": "how many?", "answer": " "}]}, "no questions: expected"),
        ("questions", {"questions": []}, "no questions"),
        ("questions", {"questions": None}, "no questions"),
        ("questions", {"questions": ["how many?"]}, "no questions: expected"),
        ("questions", {"questions": [*QUESTIONS, {"question": "how many?"}]}, "no questions: expected"),
        ("questions", {"questions": [{"question": "how many?", "answer": 2}]}, "no questions: expected"),
        (
            "questions",
            {"questions": [{"question": "a star " * 80, "answer": "no"}]},
            r"a questions document of \d+ places exceeds the row's 80",
        ),
        ("text", {"texts": []}, "no texts"),
        ("text", {"texts": [" \n"]}, "an empty document"),
        ("text", {"texts": ["say <image_start>"]}, "a text holds the tokens that stand around pictures"),
        ("image_to_text", {"captions": ["<video_end> seen"]}, "a text holds the tokens that stand around"),
        ("text_to_video", {}, "1 images, where the form needs 0"),
        ("text_to_video", {"videos": [1, 1]}, "its videos have 2 frames, but there are 1 pictures"),
        ("video_to_text", {"videos": "1"}, "videos: expected a list"),
        ("text_to_image", {"videos": [1]}, "0 images, where the form needs 1"),
        ("edit", {"instruction": "paint it"}, "1 images, where the form needs 2"),
        ("edit", {}, "no instruction"),
        ("interleaved", {}, "no interleaved: expected a text"),
        ("interleaved", {"interleaved": "<image>"}, "an empty document: no text beside its images"),
        ("interleaved", {"interleaved": "no place"}, "1 image, but 0 <image> in the text"),
        ("interleaved", {"interleaved": "<image> or <image>"}, "1 image, but 2 <image> in the text"),
        ("conversation", {}, "no conversation: expected a list of turns"),
        ("conversation", {"conversation": talk("what?", "this")}, "1 image, but 0 <image> in the text"),
        (
            "conversation",
            {"conversation": talk("<image><video>", "a")},
            "0 videos, but 1 <video> in the text",
        ),
        ("conversation", {"conversation": talk("<image>")}, "does not end with an answer"),
        (
            "conversation",
            {"conversation": talk("<image>", "a"), "pictures": 2},
            "codes of 1 pictures, but its",
        ),
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


def test_a_blend_draws_from_several_directories(
    shards: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Codes in two forms, and text as `vilau prepare` leaves it, of which no tower need know."""
    records = [{"texts": ["a star " * 60], "pictures": 0} for _ in range(20)]
    plain = [{"json": json.dumps(record).encode()} for record in records]
    write_codes(tmp_path / "text" / "train", plain, {"source": "text"})
    blend = [
        BlendConfig(directory=str(shards), form="text_to_image", weight=2.0),
        BlendConfig(directory=str(shards), form="questions", weight=0.0),
        BlendConfig(directory=str(tmp_path / "text"), form="text"),
    ]
    config = data_config(None, blend=blend)
    sources = data_sources(config, TOWER)
    assert [(Path(s.path).parent, s.form, s.weight) for s in sources] == [
        (shards, "text_to_image", 2.0),
        (tmp_path / "text", "text", 1.0),
    ]
    loader = document_loader(config, tokenizer, vocabulary, TOWER, seed=0, log_directory=tmp_path)
    pictures, full = 0, 0
    for _, batch in zip(range(40), loader, strict=False):
        pictures += int((batch.visual_targets != IGNORE).sum()) // POSITIONS
        full += int(
            ((batch.document_ids == 1).sum(dim=1) == 80).sum()
        )  # the first part of a long text fills a row
        assert len(batch.codes) == (batch.visual_targets != IGNORE).sum()
    assert 0.5 < 2 * 0.9 * full / pictures < 2
    inside = data_config(tmp_path, blend=[BlendConfig(directory="text", form="text")])
    assert [Path(s.path) for s in data_sources(inside, TOWER)] == [tmp_path / "text" / "train"]
    with pytest.raises(UserError, match="were made with the tower"):
        data_sources(config, replace(TOWER, fingerprint="fedcba"))
    write_codes(tmp_path / "bare" / "train", [sample_fields(variants())], {})
    with pytest.raises(UserError, match="holds no codes"):
        data_sources(data_config(tmp_path / "bare"), TOWER)


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
        ({"row_length": 0}, "data.row_length is 0; a row has at least 2 places"),
        ({"row_length": 1}, "data.row_length is 1"),
        ({"loader": LoaderConfig(batch_size=2)}, "data.loader.packing_buffer is 0"),
        (
            {"mixture": MixtureConfig(text_to_image=0, image_to_text=0, questions=0, text=0)},
            "data.mixture gives no",
        ),
        ({"mixture": MixtureConfig(text=-0.1)}, "data.mixture.text is -0.1"),
        ({"mixture": MixtureConfig(text=float("nan"))}, "data.mixture.text is nan"),
        ({"mixture": MixtureConfig(text=float("inf"))}, "data.mixture.text is inf"),
        ({"directory": None}, "data.directory is not set"),
        (
            {"directory": None, "blend": [part("text"), part("test")]},
            r"data.blend\[1\].form is test; there are",
        ),
        ({"directory": None, "blend": [part("text", -1.0)]}, r"data.blend.0 \(a\) is -1.0"),
        ({"directory": None, "blend": [part("text", 0.0)]}, "data.blend gives no form"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    data_config().validate()
    with pytest.raises(UserError, match=sentence):
        replace(data_config(), **changes).validate()
