"""Packing: where everything stands and what it predicts, against a layout written out place by place."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lm import D, K, all_forms, as_tensor, random_codes

from vilau_common.config import load_config
from vilau_common.data.prepare import SCHEMA_GROUPS, PrepareConfig, prepare
from vilau_common.data.shards import read_shards
from vilau_unified_lm.data import DocumentEncoder
from vilau_unified_lm.document import Document, DocumentBuilder, ImageSegment, TextSegment
from vilau_unified_lm.packing import IGNORE, MixedSequence, first_fit_decreasing, pack, packed_attention_mask
from vilau_unified_lm.train import SCHEMA_GROUPS as LM_GROUPS
from vilau_unified_lm.train import TrainLmConfig
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer


@dataclass
class Place:
    """One place of a mixed sequence, the slow way."""

    document: int  # from 1
    position: int
    text: int | None = None
    codes: tuple[int, ...] | None = None
    grid_index: int | None = None
    supervised: bool = False
    branch: int = 0


def places_of(row: list[Document]) -> list[Place]:
    places = []
    for number, document in enumerate(row, start=1):
        here: list[Place] = []
        for segment in document.segments:
            said: list[dict[str, Any]]
            if isinstance(segment, ImageSegment):
                said = [{"codes": tuple(c), "grid_index": i} for i, c in enumerate(segment.codes.tolist())]
            else:
                said = [{"text": token} for token in segment.ids]
            for what in said:
                # As it would stand without the other branches.
                seen = sum(place.branch in (0, segment.branch) for place in here)
                here.append(Place(number, seen, supervised=segment.supervised, branch=segment.branch, **what))
        places += here
    return places


def assert_layout(batch: MixedSequence, rows: list[list[Document]], length: int) -> None:
    """`batch` says of each place what `places_of` says."""
    assert batch.token_ids.shape == (len(rows), length)
    visual = 0
    for row, documents in enumerate(rows):
        places = places_of(documents)
        for index, place in enumerate(places):
            assert batch.document_ids[row, index] == place.document
            assert batch.position_ids[row, index] == place.position
            assert batch.branch_ids[row, index] == place.branch
            assert batch.visual_mask[row, index] == (place.codes is not None)
            if place.codes is None:
                assert batch.token_ids[row, index] == place.text
            else:
                assert batch.token_ids[row, index] == 0
                assert tuple(batch.codes[visual].tolist()) == place.codes
                assert batch.grid_index[visual] == place.grid_index
                visual += 1
            following = places[index + 1] if index + 1 < len(places) else None
            mine = (place.document, place.branch)
            if (
                following is None
                or (following.document, following.branch) != mine
                or not following.supervised
            ):
                following = Place(0, 0)
            text_target, visual_target = batch.text_targets[row, index], batch.visual_targets[row, index]
            assert text_target == (IGNORE if following.text is None else following.text)
            if following.codes is None:
                assert visual_target == IGNORE
            else:
                assert tuple(batch.codes[visual_target].tolist()) == following.codes
        for tensor, empty in (
            (batch.document_ids, 0),
            (batch.branch_ids, 0),
            (batch.visual_mask, 0),
            (batch.token_ids, 0),
            (batch.text_targets, IGNORE),
            (batch.visual_targets, IGNORE),
        ):
            assert (tensor[row, len(places) :] == empty).all()
    assert len(batch.codes) == len(batch.grid_index) == visual == batch.visual_mask.sum()


def random_document(rng: np.random.Generator) -> Document:
    """Any order of segments: pictures first, last or side by side, one token or many, empty texts; any branches."""
    segments, branch = [], 0
    for number in range(rng.integers(1, 7)):
        # The trunk holds something, as documents' <s> does.
        branch += int(number > 1 and rng.random() < 0.4)
        supervised = bool(rng.random() < 0.5)
        if rng.random() < 0.4:
            codes = random_codes(int(rng.integers(1000)), positions=int(rng.integers(1, 6)))
            segments.append(ImageSegment(codes, supervised, branch))
        else:
            ids = rng.integers(1, 200, size=rng.integers(number == 0, 5))
            segments.append(TextSegment(tuple(ids.tolist()), supervised, branch))
    return Document(tuple(segments))


def test_every_form_against_the_slow_layout(builder: DocumentBuilder) -> None:
    documents = all_forms(builder)
    rows = [documents[:3], documents[3:4], documents[4:]]
    length = 3 + max(sum(len(document) for document in row) for row in rows)
    assert_layout(pack(rows, length, D), rows, length)


@pytest.mark.parametrize("seed", range(20))
def test_random_documents_against_the_slow_layout(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [[random_document(rng) for _ in range(rng.integers(0, 4))] for _ in range(3)]
    length = max(1, *(sum(len(document) for document in row) for row in rows)) + int(rng.integers(0, 3))
    assert_layout(pack(rows, length, D), rows, length)


def test_image_start_predicts_the_first_position_and_the_last_predicts_image_end(
    builder: DocumentBuilder, vocabulary: Vocabulary
) -> None:
    codes = random_codes(0)
    batch = pack([[builder.text("before"), builder.text_to_image("a red circle", codes)]], 60, D)
    (start,) = (batch.token_ids[0] == vocabulary.image_start).nonzero().flatten().tolist()
    visual = batch.visual_mask[0].nonzero().flatten().tolist()
    assert visual[0] == start + 1
    assert torch.equal(batch.codes[batch.visual_targets[0, start]], as_tensor(codes)[0])
    assert batch.text_targets[0, start] == IGNORE  # <image_start> predicts no text beside
    assert batch.text_targets[0, visual[-1]] == vocabulary.image_end
    assert batch.visual_targets[0, visual[-1]] == IGNORE
    assert (batch.text_targets[0, visual[:-1]] == IGNORE).all()


def test_what_is_not_supervised_has_no_targets() -> None:
    text, image = TextSegment((5, 6, 7), supervised=False), ImageSegment(random_codes(0, 4), supervised=False)
    batch = pack([[Document((text, image, text))]], 12, D)
    assert (batch.text_targets == IGNORE).all()
    assert (batch.visual_targets == IGNORE).all()


def test_nothing_predicts_the_first_token_of_a_document() -> None:
    """The last place of the document before must not be taught it."""
    one = Document((TextSegment((5, 6, 7), supervised=True),))
    other = Document((ImageSegment(random_codes(0, 3), supervised=True),))
    batch = pack([[one, other, one]], 9, D)
    assert batch.text_targets[0].tolist() == [6, 7, IGNORE, IGNORE, IGNORE, IGNORE, 6, 7, IGNORE]
    assert batch.visual_targets[0].tolist() == [IGNORE, IGNORE, IGNORE, 1, 2, IGNORE, IGNORE, IGNORE, IGNORE]


def test_mask_looks_back_within_the_document_at_the_trunk_and_its_own_branch() -> None:
    ids = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3]])
    branches = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 1, 2, 2]])
    mask = packed_attention_mask(ids, branches)
    assert mask.shape == (2, 1, 7, 7) and mask.dtype == torch.bool
    for row in range(2):
        for place in range(7):
            for other in range(7):
                if ids[row, place]:
                    expected = other <= place and ids[row, other] == ids[row, place]
                    expected = expected and branches[row, other] in (0, branches[row, place])
                    assert mask[row, 0, place, other] == expected
            assert mask[row, 0, place].any()  # an empty row of a softmax is no number


def realistic_lengths(count: int) -> list[int]:
    """The demo's mix in a small: pictures of 16 positions with captions, questions, and short texts."""
    rng = np.random.default_rng(0)
    pictures = 20 + rng.integers(6, 30, size=count // 2)
    questions = 20 + rng.integers(10, 90, size=count // 3)
    texts = rng.integers(5, 40, size=count - count // 2 - count // 3)
    return [int(length) for length in rng.permutation(np.concatenate([pictures, questions, texts]))]


@pytest.mark.parametrize(("count", "capacity"), [(500, 128), (500, 256), (1000, 512), (1, 200), (0, 100)])
def test_first_fit_decreasing_overflows_nothing_and_forgets_nothing(count: int, capacity: int) -> None:
    lengths = realistic_lengths(count)
    bins = first_fit_decreasing(lengths, capacity)
    assert sorted(index for bin_ in bins for index in bin_) == list(range(count))
    assert all(bins)
    assert all(sum(lengths[index] for index in bin_) <= capacity for bin_ in bins)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainLmConfig, list[int]]:
    """The demo's settings, and the lengths of documents of its mixture in its world's words."""
    directory = tmp_path_factory.mktemp("scenes")
    config = load_config("train_lm", ["experiment=scenes/lm"], TrainLmConfig, groups=LM_GROUPS)
    prepared = load_config(
        "prepare", ["experiment=scenes/prepare", "directory=unused"], PrepareConfig, groups=SCHEMA_GROUPS
    )
    source = replace(prepared.source, train_count=500, test_count=1, held_out_count=1)
    prepare(replace(prepared, directory=str(directory), source=source))
    tokenizer = load_text_tokenizer(directory / "tokenizer")
    add_special_tokens(tokenizer)
    encoder = DocumentEncoder(config.data, tokenizer, Vocabulary.from_tokenizer(tokenizer, K, D))
    file = io.BytesIO()
    np.save(file, np.zeros((1, 3, 3, D), np.uint16))  # the demo's grid
    rng = np.random.default_rng(0)
    shares = vars(config.data.mixture)
    forms = rng.choice(
        list(shares),
        size=4 * config.data.loader.packing_buffer,
        p=np.array(list(shares.values())) / sum(shares.values()),
    )
    samples = list(read_shards(directory / "train"))
    lengths = []
    for form in forms:
        key, fields = samples[rng.integers(len(samples))]
        lengths.append(len(encoder.encode(key, {**fields, "codes.npy": file.getvalue()}, form, rng)))
    return config, lengths


@pytest.mark.parametrize(
    ("row_length", "waste"),
    [
        (None, 0.05),
        (160, 0.05),
        (512, 0.05),
    ],
)
def test_packing_wastes_little_of_the_demos_mixture(
    demo: tuple[TrainLmConfig, list[int]], row_length: int | None, waste: float
) -> None:
    """Buffer by buffer, as the loader packs; None: the demo's own rows."""
    config, lengths = demo
    capacity, buffer = row_length or config.data.row_length, config.data.loader.packing_buffer
    rows = sum(
        len(first_fit_decreasing(lengths[start : start + buffer], capacity))
        for start in range(0, len(lengths), buffer)
    )
    assert 1 - sum(lengths) / (rows * capacity) < waste


def test_codes_stay_in_range_of_their_type() -> None:
    batch = pack([[Document((ImageSegment(random_codes(0, 4), supervised=True),))]], 4, D)
    assert batch.codes.dtype == batch.visual_targets.dtype == batch.token_ids.dtype == torch.int64
    assert batch.codes.max() < K


def test_a_batch_without_pictures_has_empty_codes_of_the_right_depth(builder: DocumentBuilder) -> None:
    batch = pack([[builder.text("a red circle")]], 20, D)
    assert batch.codes.shape == (0, D) and batch.grid_index.shape == (0,)


def test_moving_a_batch_keeps_everything(builder: DocumentBuilder) -> None:
    batch = pack([all_forms(builder)[:2]], 80, D)
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(value, getattr(moved, name)) for name, value in vars(batch).items())
