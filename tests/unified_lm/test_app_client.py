"""The app as a program uses it, through gradio_client. Needs the extra `app`:

uv pip install 'vilau-unified-lm[app]'; python -m pytest tests/unified_lm/test_app_client.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS
from transformers import PreTrainedTokenizerFast

from vilau_common.data.conversation import USER
from vilau_unified_lm.app.studio import Message, Studio
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import GREY
from vilau_unified_lm.vocabulary import Vocabulary

pytest.importorskip("gradio", reason="the app needs gradio: the extra `app` of vilau-unified-lm")

from gradio_client import Client, handle_file  # it comes with gradio
from gradio_client.exceptions import AppError
from served_app import SAMPLING, served

CONTROLS = {
    "prompt": CAPTIONS[0],
    "negative": CAPTIONS[1],
    "guidance": 2.5,
    "temperature": 1.3,
    "top_k": 8,
    "top_p": 0.95,
    "seed": 3,
    "fresh": False,
    "count": 2,
}
CHOSEN = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.5)


@pytest.fixture(scope="module")
def app(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Iterator[tuple[Studio, Client]]:
    with served(tokenizer, vocabulary) as (studio, address):
        yield studio, Client(address, verbose=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noise of the model's size."""
    noise = np.random.default_rng(0).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def drawn(gallery: Any) -> np.ndarray:
    return np.stack([np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery])


def test_every_control_reaches_the_model(app: tuple[Studio, Client]) -> None:
    studio, client = app
    gallery, seed = client.predict(**CONTROLS, api_name="/draw")
    expected = studio.session.draw([CAPTIONS[0]] * 2, CHOSEN, [3, 4], CAPTIONS[1])
    assert np.array_equal(drawn(gallery), expected)
    assert seed == 3
    assert [item["caption"] for item in gallery] == ["seed 3", "seed 4"]


def test_pictures_come_as_they_are_drawn(app: tuple[Studio, Client]) -> None:
    job = app[1].submit(**CONTROLS, api_name="/draw")
    last = job.result(timeout=60)
    pages = [drawn(gallery) for gallery, _ in job.outputs()]
    assert (pages[0] == GREY).mean() > 0.3  # the first told, or a later one where the client was slow
    assert np.array_equal(pages[-1], drawn(last[0])) and not (pages[-1] == GREY).all(axis=-1).any()


def test_a_new_seed_is_told_and_gives_the_same_picture_again(app: tuple[Studio, Client]) -> None:
    client = app[1]
    fresh = {**CONTROLS, "count": 1, "fresh": True}
    (first, seed), (_, other) = (client.predict(**fresh, api_name="/draw") for _ in range(2))
    assert seed != other
    again, _ = client.predict(**{**fresh, "seed": seed, "fresh": False}, api_name="/draw")
    assert np.array_equal(drawn(first), drawn(again))


def test_a_picture_is_edited(app: tuple[Studio, Client], picture: Path) -> None:
    studio, client = app
    controls = {key: value for key, value in CONTROLS.items() if key not in ("prompt", "negative")}
    given = {"instruction": "make the circle blue", **controls}
    job = client.submit(picture=handle_file(picture), **given, api_name="/edit")
    gallery, seed = job.result(timeout=60)
    pixels = np.asarray(Image.open(picture))
    expected = studio.session.edit(np.stack([pixels] * 2), ["make the circle blue"] * 2, CHOSEN, [3, 4])
    assert np.array_equal(drawn(gallery), expected)
    assert seed == 3
    assert (drawn(job.outputs()[0][0]) == GREY).mean() > 0.3
    with pytest.raises(AppError, match="there is no picture to change"):
        client.predict(picture=None, **given, api_name="/edit")
    broken = picture.with_name("broken.png")
    broken.write_bytes(b"no picture")
    with pytest.raises(AppError):
        client.predict(picture=handle_file(broken), **given, api_name="/edit")


def test_every_code_is_kept_where_top_k_is_the_codebook(app: tuple[Studio, Client]) -> None:
    studio, client = app
    every = studio.session.image_tokenizer.codebook_size
    gallery, _ = client.predict(**{**CONTROLS, "top_k": every}, api_name="/draw")
    free = Sampling(temperature=1.3, top_k=None, top_p=0.95, guidance=2.5)
    assert np.array_equal(drawn(gallery), studio.session.draw([CAPTIONS[0]] * 2, free, [3, 4], CAPTIONS[1]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": ""}, "the prompt is empty; say what to draw"),
        ({"top_k": 0}, "top-k is 0; keep at least 1 token"),
        ({"prompt": "circle " * 200}, "the model's context holds"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    app: tuple[Studio, Client], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(AppError, match=told):
        app[1].predict(**{**CONTROLS, **changes}, api_name="/draw")


def test_an_upload_is_asked_about_and_asked_about_again(app: tuple[Studio, Client], picture: Path) -> None:
    studio, client = app
    codes = list(studio.session.encode(np.asarray(Image.open(picture))[None]))
    questions = [turn["question"] for turn in QUESTIONS[:2]]
    settings = {"whole": False, "frames": 2, "max_tokens": 6}
    chat = Client(client.src, verbose=False)  # a session of its own: its history is on the server
    for number, question in enumerate(questions):
        files = [handle_file(picture)] if number == 0 else []
        answer = chat.predict({"text": question, "files": files}, **settings, api_name="/chat")
        assert answer == studio.session.answer(codes, [question], 6)[0]


def test_a_file_that_is_no_picture_is_told(app: tuple[Studio, Client], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    chat = Client(app[1].src, verbose=False)
    told = chat.predict({"text": "what?", "files": [handle_file(broken)]}, api_name="/chat")
    assert told.startswith("⚠ broken.png cannot be read as a picture")
    # It does not stand in the way of what is asked next.
    whole = {"whole": True, "frames": 2, "max_tokens": 6}
    *_, expected = app[0].reply([Message(USER, "hello")], max_tokens=6, frames=2, together=True)
    assert chat.predict({"text": "hello", "files": []}, **whole, api_name="/chat") == expected


def test_controls_begin_as_the_run_was_evaluated(app: tuple[Studio, Client]) -> None:
    endpoints = app[1].view_api(return_format="dict", print_info=False)["named_endpoints"]
    begin = {
        parameter["parameter_name"]: parameter["parameter_default"]
        for parameter in endpoints["/draw"]["parameters"]
        if parameter["parameter_has_default"]
    }
    assert begin["guidance"] == SAMPLING.guidance and begin["temperature"] == SAMPLING.temperature
    assert begin["top_p"] == SAMPLING.top_p
    assert begin["top_k"] == app[0].session.image_tokenizer.codebook_size  # all, for None
    assert set(endpoints) == {"/draw", "/edit", "/chat"}
