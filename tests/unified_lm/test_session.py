"""A session: strings and pictures on both sides of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_lm import CAPTIONS, IMAGE_SIZE, POSITIONS, SIDE, D, make_model, random_codes
from transformers import PreTrainedTokenizerFast

from vilau_common.errors import UserError
from vilau_common.images import Picture
from vilau_unified_lm.document import Document
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import GREY, Session
from vilau_unified_lm.vocabulary import Vocabulary

FREE = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


@pytest.fixture
def session(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerFast) -> Session:
    return Session(make_model(vocabulary), tokenizer)


def test_pictures_and_videos_of_strings(session: Session) -> None:
    builder, engine = session.builder, session.engine
    drawn = session.draw(CAPTIONS[:2], FREE, [1, 2], negative=CAPTIONS[2])
    prompts = [builder.drawing_prompt(caption) for caption in CAPTIONS[:2]]
    codes = engine.draw(prompts, builder.drawing_prompt(CAPTIONS[2]), FREE, [1, 2])
    assert drawn.dtype == np.uint8 and drawn.shape == (2, *SHAPE)
    assert np.array_equal(drawn, session.decode(codes))
    film = session.film(CAPTIONS[:2], 3, FREE, [1, 2])
    prompts = [builder.filming_prompt(caption) for caption in CAPTIONS[:2]]
    codes = engine.film(prompts, builder.filming_prompt(""), 3, FREE, [1, 2])
    assert film.shape == (2, 3, *SHAPE)
    assert np.array_equal(film[1, 2], session.decode(codes[1, 2]))


def test_watching_a_picture_being_drawn(session: Session) -> None:
    seen: list[tuple[int, Picture, float]] = []
    drawn = session.draw(CAPTIONS[:2], FREE, [1, 2], watch=lambda *told: seen.append(told))
    assert [(sample, share) for sample, _, share in seen] == [
        (sample, (row + 1) / SIDE) for row in range(SIDE) for sample in range(2)
    ]
    cell = IMAGE_SIZE // SIDE
    for sample, picture, share in seen:
        height = round(share * SIDE) * cell
        assert (picture[height:] == GREY).all() and not (picture[:height] == GREY).all()
        if share == 1:
            assert np.array_equal(picture, drawn[sample])
    frames: list[float] = []
    session.film(CAPTIONS[:1], 2, FREE, [1], watch=lambda _, picture, share: frames.append(share))
    assert frames == [(row + 1) / (2 * SIDE) for row in range(2 * SIDE)]


def test_a_preview_shows_whole_cells(session: Session) -> None:
    codes = torch.from_numpy(random_codes(0, POSITIONS))
    cell = IMAGE_SIZE // SIDE
    picture = session.preview(codes[:4])
    drawn = (picture != GREY).any(axis=2)
    assert drawn[:cell].mean() > 0.9 and drawn[cell : 2 * cell, :cell].mean() > 0.9
    assert not drawn[cell : 2 * cell, cell:].any() and not drawn[2 * cell :].any()
    whole = session.decode(codes.view(SIDE, SIDE, D))
    assert np.array_equal(session.preview(codes), whole)


def test_generating_text_and_pictures(session: Session) -> None:
    builder = session.builder
    drawing = builder.drawing_prompt(CAPTIONS[0])
    asked = builder.question_prompt(random_codes(0), "how many objects?")
    picture, text = session.generate([drawing, asked], POSITIONS, FREE, [1, 2])
    assert np.array_equal(picture[0], session.draw(CAPTIONS[:1], FREE, [1])[0])
    written = " ".join(part for part in text if isinstance(part, str))
    assert written
    film = session.generate([builder.filming_prompt("")], 2 * POSITIONS, FREE, [3], frames=2)[0][0]
    assert isinstance(film, np.ndarray) and film.shape == (2, *SHAPE)


def test_a_text_ends_before_a_stop_string(session: Session) -> None:
    asked: Document = session.builder.question_prompt(random_codes(0), "how many objects?")
    ids = session.engine.write([asked], -1, 8, Sampling(temperature=0), [0])[0]
    whole = session.text(ids)
    assert len(whole) > 4
    word = whole[3:5]
    (text,) = session.generate([asked], 8, FREE, [0], stop=["never there", word])[0]
    assert text == whole[: whole.index(word)]


def test_opening_a_run(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.model.save_pretrained(tmp_path / "model")
    session.text_tokenizer.save_pretrained(tmp_path / "model")
    opened = Session.open(tmp_path, compile="static")
    assert np.array_equal(opened.draw(CAPTIONS[:1], FREE, [1]), session.draw(CAPTIONS[:1], FREE, [1]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device is cuda, but torch finds no GPU here"):
        Session.open(tmp_path, device="cuda", compile="graph")
    with pytest.raises(UserError, match="the model is on cpu"):
        Session.open(tmp_path, compile="graph")
