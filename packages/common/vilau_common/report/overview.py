"""overview.png: one picture of what a run can do, for a README.

What is shown is not picked for being right: kinds take turns, each from its first example on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from vilau_common.report.examples import Answer, Drawing, Examples, Reconstruction
from vilau_common.report.pictures import LARGEST_PIXELATED_SIDE

WIDTH = 1200
MARGIN = 28
GAP = 28
PICTURE = 160  # side at which every picture is shown
FRAME = 4
TILE = PICTURE + 2 * FRAME
COLUMNS = 6
CELL = TILE + 14  # a tile with room for text below
CONTENT = WIDTH - 2 * MARGIN
BLOW_UP = 8
DRAWINGS = 12
ANSWER_COLUMNS = 3
ANSWERS = 6
LINE = 1.35  # line height in font sizes
HEADING, TEXT, SMALL = 24, 15, 14
INK, FADED, RIGHT, WRONG, PLAIN, PAPER = "#1e293b", "#64748b", "#15803d", "#dc2626", "#cbd5e1", "#ffffff"

Example = TypeVar("Example", Drawing, Answer)


def overview(examples: Examples) -> Image.Image | None:
    """RGB, `WIDTH` pixels wide; a part without examples is left out, None if all are."""
    parts = []
    if examples.reconstructions:
        shown = examples.reconstructions[:COLUMNS]
        title = "Pictures as codes"
        about = (
            "Above: pictures that the model never saw. Below: the same, drawn again from a few code numbers."
        )
        parts += [_heading(title, about), _grid([_reconstruction(example) for example in shown], COLUMNS)]
    if examples.drawings:
        drawings = in_turn(examples.drawings, DRAWINGS)
        title = "It draws"
        about = (
            "Green frame: a fixed program finds in the picture what was asked for. Red frame: it does not."
        )
        parts += [_heading(title, about), _grid([_drawing(example) for example in drawings], COLUMNS)]
    if examples.answers:
        answers = in_turn(examples.answers, ANSWERS)
        about = "Questions about pictures that the model never saw, and its answers."
        parts += [
            _heading("It answers", about),
            _grid([_answer(example) for example in answers], ANSWER_COLUMNS),
        ]
    return _stacked(parts) if parts else None


def in_turn(examples: Sequence[Example], count: int) -> list[Example]:
    """Up to `count` examples: one of each kind in turn, and of pictures not shown yet where there are any."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    chosen: list[Example] = []
    pictures: set[Path] = set()
    while len(chosen) < min(count, len(examples)):
        for waiting in kinds.values():
            if waiting and len(chosen) < count:
                fresh = (index for index, example in enumerate(waiting) if example.picture not in pictures)
                chosen.append(waiting.pop(next(fresh, 0)))
                pictures.add(chosen[-1].picture)
    return chosen


def wrapped(text: str, width: int, measure: Callable[[str], float]) -> list[str]:
    """The text in lines no wider than `width`, broken between words; a word that is wider stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _reconstruction(example: Reconstruction) -> Image.Image:
    cell = Image.new("RGB", (CELL, 2 * TILE + FRAME), PAPER)
    cell.paste(_tile(example.original, PLAIN), (0, 0))
    cell.paste(_tile(example.reconstruction, RIGHT if example.right else WRONG), (0, TILE + FRAME))
    return cell


def _drawing(example: Drawing) -> Image.Image:
    colour = RIGHT if example.picture_right else WRONG
    prompt = f"{_mark(example.picture_right)} {example.prompt}"
    text = _text([(prompt, TEXT, INK)], CELL)
    cell = Image.new("RGB", (CELL, TILE + FRAME + text.height), PAPER)
    cell.paste(_tile(example.picture, colour), (0, 0))
    cell.paste(text, (0, TILE + FRAME))
    return cell


def _answer(example: Answer) -> Image.Image:
    width = (CONTENT - (ANSWER_COLUMNS - 1) * GAP) // ANSWER_COLUMNS
    lines = [
        (example.question, TEXT, INK),
        (f"{_mark(example.right)} {example.answer}", TEXT + 2, RIGHT if example.right else WRONG),
    ]
    if not example.right:
        lines.append((f"right: {example.expected}", SMALL, FADED))
    text = _text(lines, width - TILE - GAP // 2)
    cell = Image.new("RGB", (width, max(TILE, text.height)), PAPER)
    cell.paste(_tile(example.picture, PLAIN), (0, 0))
    cell.paste(text, (TILE + GAP // 2, 0))
    return cell


def _mark(right: bool) -> str:
    return "✓" if right else "✗"


def _tile(path: Path, colour: str) -> Image.Image:
    """The picture in a frame; the pixels of a small one are shown as squares."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if max(picture.size) <= LARGEST_PIXELATED_SIDE:
        # Repeated more often than needed first: averaged down to size, the squares are all alike.
        blown_up = (picture.width * BLOW_UP, picture.height * BLOW_UP)
        picture = picture.resize(blown_up, Image.Resampling.NEAREST)
    picture = picture.resize((PICTURE, PICTURE), Image.Resampling.BOX)
    tile = Image.new("RGB", (TILE, TILE), colour)
    tile.paste(picture, (FRAME, FRAME))
    return tile


def _heading(title: str, about: str) -> Image.Image:
    return _text([(title, HEADING, INK), (about, TEXT, FADED)], CONTENT)


def _text(paragraphs: Sequence[tuple[str, int, str]], width: int) -> Image.Image:
    """Paragraphs (text, font size, colour) below each other, as wide as given and as high as they need."""
    placed: list[tuple[int, str, ImageFont.FreeTypeFont, str]] = []
    y = 0
    for text, size, colour in paragraphs:
        font = _font(size, bold=size > TEXT)
        for line in wrapped(text, width, font.getlength):
            placed.append((y, line, font, colour))
            y += round(size * LINE)
    picture = Image.new("RGB", (width, max(1, y)), PAPER)
    draw = ImageDraw.Draw(picture)
    for top, line, font, colour in placed:
        draw.text((0, top), line, fill=colour, font=font)
    return picture


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: matplotlib brings it to every machine, and it has the marks."""
    weight = "bold" if bold else "normal"
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), size)


def _grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cells of one width row by row, the columns spread over the whole width."""
    pitch = (CONTENT - cells[0].width) / (columns - 1)
    strips = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        strip = Image.new("RGB", (CONTENT, max(cell.height for cell in row)), PAPER)
        for index, cell in enumerate(row):
            strip.paste(cell, (round(index * pitch), 0))
        strips.append(strip)
    return _joined(strips, FRAME * 4)


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Headings and grids in turn, on one sheet."""
    blocks = [_joined(parts[start : start + 2], FRAME * 3) for start in range(0, len(parts), 2)]
    content = _joined(blocks, GAP)
    sheet = Image.new("RGB", (WIDTH, content.height + 2 * MARGIN), PAPER)
    sheet.paste(content, (MARGIN, MARGIN))
    return sheet


def _joined(strips: Sequence[Image.Image], gap: int) -> Image.Image:
    """Strips of the full width below each other."""
    height = sum(strip.height for strip in strips) + gap * (len(strips) - 1)
    page = Image.new("RGB", (CONTENT, height), PAPER)
    y = 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height + gap
    return page
