"""What the page of `vilau app` asks of a model, without the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS, SIDE, make_model
from transformers import PreTrainedTokenizerFast

from vilau_common.data.conversation import ASSISTANT, USER, Turn
from vilau_common.errors import UserError
from vilau_common.pictures import Picture, centre_square
from vilau_unified_lm.app.studio import Drawn, Message, Studio, read_training
from vilau_unified_lm.app.uploads import is_video, read_upload
from vilau_unified_lm.app.worker import Worker
from vilau_unified_lm.cli import main
from vilau_unified_lm.document import Document, TextSegment
from vilau_unified_lm.generation.request import TextEvent
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import GREY, Session
from vilau_unified_lm.vocabulary import Vocabulary

FREE = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
MAX_TOKENS = 6


@pytest.fixture(scope="module")
def studio(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Studio:
    return Studio(Session(make_model(vocabulary), tokenizer))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Noise, wider than high."""
    paths = []
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE + 6, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(noise).save(paths[-1])
    return paths


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A GIF whose five frames grow brighter."""
    frames = [Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (50 * n,) * 3) for n in range(5)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=40)
    return tmp_path / "film.gif"


# --- the worker --------------------------------------------------------------------------------------------------


def test_what_work_tells_and_returns_comes_in_order() -> None:
    def work(tell: Callable[[int], None]) -> int:
        for number in range(3):
            tell(number)
            time.sleep(0.02)
        return 9

    seen = list(Worker().stream(work))
    assert seen[-1] == 9 and seen == sorted(seen)
    assert len(set(seen)) == len(seen) > 1


def test_a_slow_reader_is_given_the_newest() -> None:
    told = threading.Event()

    def work(tell: Callable[[int], None]) -> int:
        for number in range(1, 100):
            tell(number)
        told.set()
        return 100

    stream = Worker().stream(work)
    first = next(stream)
    assert told.wait(10)
    assert [first, *stream][-2:] == [99, 100]


def test_a_reader_that_leaves_ends_the_work_before_the_next_begins() -> None:
    worker, ended = Worker(), []

    def endless(tell: Callable[[int], None]) -> int:
        try:
            while True:
                tell(1)
                time.sleep(0.001)
        finally:
            ended.append(True)

    stream = worker.stream(endless)
    assert next(stream) == 1
    stream.close()
    assert list(worker.stream(lambda tell: len(ended))) == [1]


def test_what_work_raises_is_raised_to_the_reader() -> None:
    def work(tell: Callable[[int], None]) -> int:
        tell(1)
        raise UserError("too long")

    worker = Worker()
    with pytest.raises(UserError, match="too long"):
        list(worker.stream(work))
    assert list(worker.stream(lambda tell: 2)) == [2]


# --- drawing -----------------------------------------------------------------------------------------------------


def test_pictures_are_shown_as_they_are_drawn(studio: Studio) -> None:
    seen = list(studio.draw(CAPTIONS[0], FREE, negative=CAPTIONS[1], seed=3, count=2))
    whole = studio.session.draw([CAPTIONS[0]] * 2, FREE, [3, 4], CAPTIONS[1])
    assert np.array_equal(np.stack(seen[-1].pictures), whole)
    shares = [drawn.share for drawn in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert set(shares) <= {0.0, *((row + 1) / SIDE for row in range(SIDE))}


def test_what_is_not_drawn_yet_is_grey(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def work_that_waits(work: Callable[[Callable[[Drawn], None]], Drawn]) -> list[Drawn]:
        told: list[Drawn] = []
        told.append(work(told.append))
        return told

    monkeypatch.setattr(studio._worker, "stream", work_that_waits)
    first, *_, last = studio.draw(CAPTIONS[0], FREE, count=2)
    assert all((picture == GREY).all() for picture in first.pictures)
    second = list(studio.draw(CAPTIONS[0], FREE, count=2))[1]
    assert second.share == pytest.approx(1 / SIDE)
    cell = IMAGE_SIZE // SIDE
    for picture, whole in zip(second.pictures, last.pictures, strict=True):
        assert (picture[cell:] == GREY).all() and not (picture[:cell] == GREY).all()
        assert picture.shape == whole.shape


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"count": 0}, "0 pictures are asked for"),
        ({"seed": -1}, "the seed is -1"),
        ({"prompt": "circle " * 200}, "context"),
    ],
)
def test_what_cannot_be_drawn_is_refused(studio: Studio, changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(studio.draw(**{"prompt": "a circle", "sampling": FREE, **changes}))  # type: ignore[arg-type]


def test_a_picture_is_edited_as_its_codes_and_instruction_say(
    studio: Studio, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    draw = studio.session.engine.draw
    monkeypatch.setattr(
        studio.session.engine, "draw", lambda given, *more: seen.extend([given, *more]) or draw(given, *more)
    )
    *_, last = studio.edit(pictures[0], "make it blue", FREE, seed=3, count=2)
    prompts, away, sampling, seeds, _ = seen
    builder = studio.session.builder
    expected = builder.editing_prompt(coded(studio, pictures[0])[0], "make it blue")
    assert [ids_of(prompt) for prompt in prompts] == [ids_of(expected)] * 2
    assert ids_of(away) == ids_of(builder.drawing_prompt(""))
    assert (sampling, seeds) == (FREE, [3, 4])
    codes = draw([expected] * 2, away, FREE, [3, 4])
    assert np.array_equal(np.stack(last.pictures), studio.session.decode(codes))


def test_what_cannot_be_edited_is_refused(studio: Studio, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for file, instruction, told in (
        (None, "make it blue", "there is no picture to change"),
        (pictures[0], " ", "the instruction is empty"),
        (broken, "make it blue", "^broken.png cannot be read as a picture"),
    ):
        with pytest.raises(UserError, match=told):
            studio.edit(file, instruction, FREE)


# --- chat --------------------------------------------------------------------------------------------------------


def answered(studio: Studio, *messages: Message, together: bool = True, frames: int = 2) -> str:
    *before, last = studio.reply(messages, max_tokens=MAX_TOKENS, frames=frames, together=together)
    assert all(last.startswith(text) for text in before)
    return last


def coded(studio: Studio, *paths: Path) -> list[np.ndarray]:
    squares = [centre_square(np.asarray(Image.open(path)), IMAGE_SIZE) for path in paths]
    return list(studio.session.encode(np.stack(squares)))


def test_a_question_about_a_picture_is_answered_as_by_ask(studio: Studio, pictures: list[Path]) -> None:
    question = QUESTIONS[0]["question"]
    expected = studio.session.answer(coded(studio, pictures[0]), [question], MAX_TOKENS)
    assert expected[0]
    for together in (False, True):
        assert [answered(studio, Message(USER, question, (pictures[0],)), together=together)] == expected


def test_questions_that_stand_alone_are_about_the_newest_pictures(
    studio: Studio, pictures: list[Path]
) -> None:
    question = QUESTIONS[1]["question"]
    messages = [
        Message(USER, "what?", (pictures[0],)),
        Message(ASSISTANT, "a star"),
        Message(USER, "and this?", (pictures[1],)),
        Message(ASSISTANT, "two"),
        Message(USER, question),
    ]
    expected = studio.session.answer(coded(studio, pictures[1]), [question], MAX_TOKENS)
    assert [answered(studio, *messages, together=False)] == expected


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = studio.session.text_tokenizer("a €b", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("a €b")

    def write(prompts: object, end: object, limit: object, how: object, seeds: object, listen: Any) -> Any:
        for length in range(1, len(ids) + 1):
            listen(TextEvent(0, ids[:length]))
        return [ids]

    shown: list[str] = []
    monkeypatch.setattr(studio.session.engine, "write", write)
    # Every state: a page may skip some.
    monkeypatch.setattr(studio._worker, "stream", lambda work: [*shown, work(shown.append)])
    assert list(studio.reply([Message(USER, "what?")], max_tokens=9, frames=2, together=False)) == ["a €b"]
    assert set(shown) == {"a", "a €", "a €b"}


def test_a_conversation_is_one_prompt(
    studio: Studio, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []
    write = studio.session.engine.write
    monkeypatch.setattr(
        studio.session.engine, "write", lambda given, *more: prompts.extend(given) or write(given, *more)
    )
    messages = [
        Message(USER, "which is red?", tuple(pictures)),
        Message(ASSISTANT, "one"),
        Message(USER, "two?"),
    ]
    answered(studio, *messages)
    builder = studio.session.builder
    first, second = coded(studio, *pictures)
    turns = [
        Turn(USER, "<image><image>which is red?"),
        Turn(ASSISTANT, "one"),
        Turn(USER, "two?"),
    ]
    whole = builder.conversation(turns, [first, second])
    assert ids_of(prompts[0]) == ids_of(whole)


def ids_of(document: Document) -> list[object]:
    return [
        segment.ids if isinstance(segment, TextSegment) else segment.codes.tolist()
        for segment in document.segments
    ]


def test_a_video_is_so_many_frames(studio: Studio, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="videos need vilau-common[video]")
    seen: list[Picture] = []
    encode = studio.session.encode
    monkeypatch.setattr(studio.session, "encode", lambda frames: seen.append(frames) or encode(frames))
    assert isinstance(answered(studio, Message(USER, "what moves?", (film,)), frames=3), str)
    assert seen[0].shape == (3, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert seen[0].mean(axis=(1, 2, 3)) == pytest.approx([0, 100, 200], abs=6)


def test_words_alone_are_answered(studio: Studio) -> None:
    assert isinstance(answered(studio, Message(USER, "hello")), str)


@pytest.mark.parametrize(
    ("text", "together", "told"),
    [
        ("", True, "no text"),
        ("is <image> red?", True, "<image> and <video> stand for files"),
        ("circle " * 200, True, "context"),
    ],
)
def test_what_cannot_be_answered_is_refused(studio: Studio, text: str, together: bool, told: str) -> None:
    with pytest.raises(UserError, match=told):
        answered(studio, Message(USER, text), together=together)


def test_an_answer_that_nobody_waits_for_ends(studio: Studio, pictures: list[Path]) -> None:
    stream = studio.reply(
        [Message(USER, "why?", (pictures[0],))], max_tokens=MAX_TOKENS, frames=2, together=True
    )
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert answered(studio, Message(USER, "why?", (pictures[0],)))


# --- files and the command ---------------------------------------------------------------------------------------


def test_uploads(pictures: list[Path], film: Path, tmp_path: Path) -> None:
    upload = read_upload(pictures[0], IMAGE_SIZE, 8)
    assert upload.frames.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3) and not upload.video
    assert is_video(film) and is_video(Path("a.MP4")) and not is_video(pictures[0])
    still = tmp_path / "still.gif"
    Image.new("RGB", (40, 40), "red").save(still)
    assert not is_video(still)
    broken = tmp_path / "broken.gif"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^broken.gif cannot be read as a picture"):
        read_upload(broken, IMAGE_SIZE, 8)
    pytest.importorskip("av", reason="videos need vilau-common[video]")
    with pytest.raises(UserError, match=r"^film.gif has 5 frames, fewer than the 8"):
        read_upload(film, IMAGE_SIZE, 8)


def test_what_a_run_was_trained_on_is_read_off_its_settings(tmp_path: Path) -> None:
    unknown = read_training(tmp_path)
    assert unknown.remembers and not unknown.forms
    settings = tmp_path / "config.yaml"
    for independent in (True, False):
        told = {"mixture": {"questions": 0.5, "edit": 0.0}, "independent_questions": independent}
        settings.write_text(yaml.safe_dump({"data": told}))
        assert read_training(tmp_path).remembers is not independent
    assert read_training(tmp_path).forms == {"questions"}
    blend = [{"form": "edit", "weight": 1.0}, {"form": "text", "weight": 0.0}]
    settings.write_text(yaml.safe_dump({"data": {**told, "blend": blend, "independent_questions": True}}))
    assert read_training(tmp_path).forms == {"edit"} and not read_training(tmp_path).remembers
    blend.append({"form": "conversation", "weight": 0.1})
    settings.write_text(yaml.safe_dump({"data": {"blend": blend, "independent_questions": True}}))
    assert read_training(tmp_path).remembers


def test_without_gradio_the_page_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app", str(tmp_path)]) == 2
    assert "pip install 'vilau-unified-lm[app]'" in capsys.readouterr().err
