"""Sections of the page whose examples are rows of pictures: videos, edits, shots, stories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vilau_common.report.examples import Examples, Strip
from vilau_common.report.numbers import shown
from vilau_common.report.pictures import InlinePicture, inline_picture
from vilau_common.report.sections import HELD_OUT, Proportion

_ABOUT = {
    "videos": (
        "Videos",
        "One object crosses the picture, others stay. Asked what moves where, the model watches; from a prompt, it "
        "draws the frames one after the other, and the verifier reads object and direction off them.",
    ),
    "edits": (
        "Edits",
        "Left a picture, right what the model made of it when told the instruction. An edit is right if what was asked "
        "for changed and everything else stayed.",
    ),
    "shots": (
        "Learning from examples",
        "Pictures with invented names, new in every row, and a last one to name. Without examples the name can only be "
        "guessed; under the last picture stands what the model said.",
    ),
    "stories": (
        "Stories",
        "The first line was given. The model drew the picture, wrote what to change, drew that, and so on by itself. A "
        "story is right if each picture shows what the text up to it tells.",
    ),
}

# The numbers of each section, in the order shown.
_NUMBERS = {
    "videos": {
        "lm/video_question_object_accuracy": "asked: object right",
        "lm/video_question_direction_accuracy": "asked: direction right",
        "lm/video_caption_accuracy": "described: everything right",
        "lm/draw_video_object_accuracy": "drawn: object right",
        "lm/draw_video_direction_accuracy": "drawn: direction right",
        "lm/draw_video_scene_accuracy": "drawn: everything right",
    },
    "edits": {
        "lm/edit_accuracy": "all edits",
        "lm/edit_accuracy/recolour": "recolour",
        "lm/edit_accuracy/remove": "remove",
        "lm/edit_accuracy/move": "move",
        "lm/edit_changed_accuracy": "changed as asked",
        "lm/edit_kept_accuracy": "the rest as it was",
    },
    "shots": {
        "lm/shots_0_accuracy": "no examples",
        "lm/shots_2_accuracy": "2 examples",
        "lm/shots_4_accuracy": "4 examples",
    },
    "stories": {
        "lm/story_text_accuracy": "texts that fit",
        "lm/story_picture_accuracy": "pictures that show what is told",
    },
}


@dataclass(frozen=True)
class StripRow:
    """A row of pictures, each with what stands under it (perhaps nothing)."""

    pictures: list[tuple[InlinePicture, str]]
    strip: Strip


@dataclass(frozen=True)
class StripSection:
    """One sort of rows."""

    name: str  # the section's id
    title: str
    about: str
    numbers: list[Proportion]
    rows: list[StripRow]


def strip_sections(examples: Examples, results: Mapping[str, float]) -> list[StripSection]:
    """The sections that have examples."""
    sections = []
    for name, (title, about) in _ABOUT.items():
        strips: list[Strip] = getattr(examples, name)
        if strips:
            rows = [StripRow(_labelled(strip), strip) for strip in strips]
            sections.append(StripSection(name, title, about, _numbers(name, results), rows))
    return sections


def _labelled(strip: Strip) -> list[tuple[InlinePicture, str]]:
    labels = strip.labels or ("",) * len(strip.pictures)
    return [(inline_picture(path), label) for path, label in zip(strip.pictures, labels, strict=True)]


def _numbers(name: str, results: Mapping[str, float]) -> list[Proportion]:
    lines = []
    for key, label in _NUMBERS[name].items():
        if key in results:
            held_out = results.get(HELD_OUT + key)
            lines.append(
                Proportion(
                    label=label,
                    explanation="",
                    value=shown(key, results[key]),
                    share=results[key],
                    held_out="" if held_out is None else shown(key, held_out),
                )
            )
    return lines
