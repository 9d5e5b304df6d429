"""The app as a person uses it, in Debian's Chromium. Needs the extra `app`, playwright (not its browsers), chromium:

apt-get install chromium; uv pip install 'vilau-unified-lm[app]' playwright
python -m pytest -m slow tests/unified_lm/test_app_browser.py
"""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS, SIDE
from transformers import PreTrainedTokenizerFast

from vilau_unified_lm.app.studio import Studio
from vilau_unified_lm.evaluation.language import MAX_TOKENS
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import GREY
from vilau_unified_lm.vocabulary import Vocabulary

pytest.importorskip("gradio", reason="the app needs gradio: the extra `app` of vilau-unified-lm")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api as playwright
from served_app import SAMPLING, served

CHROMIUM = shutil.which("chromium")
# Slow: a browser beside the other tests takes its time, and a page that waits is no defect of ours.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
PATIENCE = 30_000  # milliseconds
playwright.expect.set_options(timeout=PATIENCE)
# Without a sandbox, as containers have none; and nothing that asks servers of the browser's own.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAINTED = ".grid-wrap img"
ANSWER = '[data-testid="bot"]'


@pytest.fixture(scope="module")
def app(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Iterator[tuple[Studio, str]]:
    with served(tokenizer, vocabulary) as served_at:
        yield served_at


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, app: tuple[Studio, str]) -> Iterator[Any]:
    """The page, newly opened. It must ask no other server for anything."""
    shown = browser.new_page()
    shown.set_default_timeout(PATIENCE)
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(app[1])
    yield shown
    shown.close()
    elsewhere = [url for url in asked if not url.startswith((app[1], "data:", "blob:"))]
    assert not elsewhere


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noise of the model's size."""
    noise = np.random.default_rng(0).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def slow(app: tuple[Studio, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that a person can watch."""
    session = app[0].session
    preview = session.preview

    def slowly(codes: Any) -> Any:
        time.sleep(0.5)
        return preview(codes)

    monkeypatch.setattr(session, "preview", slowly)


def pixels(page: Any, address: str) -> np.ndarray:
    """A picture that the page shows."""
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB"))


def grey_rows(picture: np.ndarray) -> int:
    """Rows of cells that are not drawn yet."""
    cell = IMAGE_SIZE // SIDE
    return sum(bool((picture[row * cell : (row + 1) * cell] == GREY).all()) for row in range(SIDE))


def begin(tab: Any, prompt: str, seed: int) -> None:
    """Fill in the controls and press the button."""
    tab.locator("textarea").first.fill(prompt)
    tab.get_by_label("Seed", exact=False).first.fill(str(seed))
    tab.get_by_role("button", name=re.compile("^(Draw|Edit)$")).click()


def opened(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name).click()
    return page.locator(f"#{name.lower()}")


def painted(tab: Any, rows_left: int) -> np.ndarray:
    """The picture when so many rows, or fewer, are still to be drawn."""
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        if tab.locator(PAINTED).count():
            picture = pixels(tab.page, tab.locator(PAINTED).first.get_attribute("src"))
            if grey_rows(picture) <= rows_left:
                return picture
        tab.page.wait_for_timeout(50)
    raise AssertionError(f"after {PATIENCE} ms more than {rows_left} rows are still to be drawn")


def test_the_picture_is_seen_as_it_is_drawn(page: Any, app: tuple[Studio, str], slow: None) -> None:
    tab = opened(page, "Draw")
    begin(tab, CAPTIONS[0], seed=5)
    part = painted(tab, SIDE - 1)
    assert 0 < grey_rows(part) < SIDE
    whole = painted(tab, 0)
    sampling = Sampling(
        temperature=SAMPLING.temperature, top_k=None, top_p=SAMPLING.top_p, guidance=SAMPLING.guidance
    )
    assert np.array_equal(whole, app[0].session.draw([CAPTIONS[0]], sampling, [5])[0])
    drawn = IMAGE_SIZE // SIDE * (SIDE - grey_rows(part))
    # A decoder sees beyond its cell: what is drawn later changes the edge of what was there.
    assert not np.array_equal(part, whole) and not (whole[drawn:] == GREY).all()
    # Its 24 pixels are shown as squares.
    assert tab.locator(PAINTED).first.evaluate("it => getComputedStyle(it).imageRendering") == "pixelated"


def test_a_drawing_is_stopped_and_the_next_one_begins(page: Any, app: tuple[Studio, str], slow: None) -> None:
    tab = opened(page, "Draw")
    begin(tab, CAPTIONS[0], seed=1)
    painted(tab, SIDE - 1)
    tab.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(1500)
    assert grey_rows(painted(tab, SIDE)) > 0
    begin(tab, CAPTIONS[1], seed=2)
    assert grey_rows(painted(tab, 0)) == 0


def test_a_mistake_is_shown_in_a_sentence(page: Any) -> None:
    playwright.expect(ask(page, "is <image> red?")).to_contain_text("<image> and <video> stand for files")
    begin(opened(page, "Draw"), "", seed=0)
    playwright.expect(page.get_by_text("the prompt is empty; say what to draw")).to_be_visible()


def test_a_picture_is_edited_and_seen_as_it_is_drawn(
    page: Any, app: tuple[Studio, str], slow: None, picture: Path
) -> None:
    tab = opened(page, "Edit")
    tab.locator("input[type=file]").set_input_files(str(picture))
    playwright.expect(tab.get_by_label("Remove Image")).to_be_visible()
    begin(tab, "make the circle blue", seed=5)
    part = painted(tab, SIDE - 1)
    assert 0 < grey_rows(part) < SIDE
    sampling = Sampling(
        temperature=SAMPLING.temperature, top_k=None, top_p=SAMPLING.top_p, guidance=SAMPLING.guidance
    )
    shown = np.asarray(Image.open(picture))
    expected = app[0].session.edit(shown[None], ["make the circle blue"], sampling, [5])[0]
    assert np.array_equal(painted(tab, 0), expected)


@pytest.fixture
def spelled(app: tuple[Studio, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's text may be anything, Markdown too; its ids are letters that a page leaves alone."""
    monkeypatch.setattr(app[0].session, "text", lambda ids: " ".join(f"w{token}" for token in ids))


def ask(page: Any, question: str, *files: Path) -> Any:
    """The place of the answer in the chat."""
    before = page.locator(ANSWER).count()
    box = page.locator("#chat textarea")
    playwright.expect(box).to_be_enabled()  # it is not while an answer is written
    if files:
        page.locator("#chat input[type=file]").set_input_files([str(file) for file in files])
        playwright.expect(page.locator(".thumbnail-item")).to_have_count(len(files))
    box.fill(question)
    box.press("Enter")
    return page.locator(ANSWER).nth(before)


def test_a_picture_is_asked_about(page: Any, app: tuple[Studio, str], picture: Path, spelled: None) -> None:
    session = app[0].session
    codes = list(session.encode(np.asarray(Image.open(picture))[None]))
    for number, turn in enumerate(QUESTIONS[:2]):
        answer = ask(page, turn["question"], *([picture] if number == 0 else []))
        expected = session.answer(codes, [turn["question"]], MAX_TOKENS)[0]
        playwright.expect(answer).to_have_text(expected)
    # Sharing would send pictures to a server of others.
    playwright.expect(page.locator("#chat [aria-label=Share]").locator("visible=true")).to_have_count(0)


def test_a_video_is_asked_about(page: Any, tmp_path: Path, spelled: None) -> None:
    pytest.importorskip("av", reason="videos need vilau-common[video]")
    frames = [Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (30 * n,) * 3) for n in range(8)]
    frames[0].save(tmp_path / "short.gif", save_all=True, append_images=frames[1:2], duration=40)
    refused = ask(page, "what moves?", tmp_path / "short.gif")
    playwright.expect(refused).to_contain_text("short.gif has 2 frames, fewer than the 8")
    page.reload()
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Frames").first.fill("2")  # more of them the tiny context does not hold
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=40)
    playwright.expect(ask(page, "and this?", tmp_path / "film.gif")).to_have_text(re.compile(r"w\d+"))
