"""What OpenMoji's drawings show, in words: names from the package `emoji` (Unicode's short names), and their concepts.

A **concept** is what is left of a name without skin tone, gender and direction: "man running: light skin tone" and
"woman running facing right" are both `running`. The split goes by concept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vilau_common.errors import UserError

_TONE = re.compile(r"_?(?:medium-light|medium-dark|medium|light|dark)_skin_tone")
_FLAG_LETTERS = range(0x1F1E6, 0x1F1FF + 1)  # two of them are a country's flag
_FLAG_TAGS = range(0xE0020, 0xE007F + 1)  # spell the flags of Scotland and the like
_TONES = range(0x1F3FB, 0x1F3FF + 1)

# Who does it. "And" joins only those.
_PEOPLE = frozenset(
    ["man", "men", "woman", "women", "person", "people", "boy", "girl", "child", "adult", "and"]
)
# Where Unicode has a word of its own for each gender.
_SAME = {
    "merman": "merperson",
    "mermaid": "merperson",
    "prince": "with_crown",
    "princess": "with_crown",
    "older": "old",
    "mrs._claus": "santa_claus",
    "mx_claus": "santa_claus",
}
_EVERYBODY = "person"
# Unicode's numbers ("u55b6", "clock330") are aliases, too, but no words.
_WORDS = re.compile(r"[a-z][a-z' -]+")


@dataclass(frozen=True)
class Emoji:
    """One drawing. code: its characters as OpenMoji names the file, "1F469-200D-1F52C"."""

    code: str
    name: str  # "woman scientist, light skin tone"
    plain_name: str  # without the tone
    aliases: tuple[str, ...]
    concept: str
    is_flag: bool
    has_tone: bool

    def captions(self) -> list[str]:
        """The first says everything."""
        whole = f"flag of {self.name}" if self.is_flag else self.name
        plain = f"flag of {self.plain_name}" if self.is_flag else self.plain_name
        aliases = [alias for alias in self.aliases if alias.lower() != whole.lower()]
        return [whole, f"a drawing of {plain}", f"emoji: {whole}", *aliases]


def known_emoji(codes: list[str]) -> list[Emoji]:
    """Those of OpenMoji's drawings that Unicode names, in order; its own extras and loose skin tones have no names.

    Raises UserError if the package `emoji` is not installed.
    """
    try:
        from emoji import EMOJI_DATA, STATUS  # needed by nothing else
    except ImportError as error:
        raise not_installed("emoji") from error
    entries = ((code, EMOJI_DATA.get(_characters(code))) for code in codes)
    return [
        _emoji(code, entry) for code, entry in entries if entry and entry["status"] != STATUS["component"]
    ]


def not_installed(package: str) -> UserError:
    """What to do about a missing package."""
    return UserError(
        f"source=openmoji needs the package {package}, which is not installed: `pip install 'vilau-common[openmoji]'`"
    )


def concept_of(name: str) -> str:
    """Of Unicode's short name without colons, such as "man_running_facing_right_light_skin_tone"."""
    plain = _TONE.sub("", name).removesuffix("_facing_right").lower()
    words = [word for word in plain.split("_") if word not in _PEOPLE]
    concept = "_".join(words) or _EVERYBODY
    # "Kiss", "family" and "couple" list who they are of, which is gone now.
    return _SAME.get(concept, concept)


def _emoji(code: str, entry: dict[str, Any]) -> Emoji:
    short = entry["en"].strip(":")
    points = [int(point, 16) for point in code.split("-")]
    tones = [match.group().strip("_").replace("_", " ") for match in _TONE.finditer(short)]
    plain = _TONE.sub("", short).replace("_", " ").strip()
    aliases = (alias.strip(":").replace("_", " ") for alias in entry.get("alias", []))
    is_flag = all(point in _FLAG_LETTERS for point in points) or any(point in _FLAG_TAGS for point in points)
    return Emoji(
        code=code,
        name=", ".join([plain, *tones]),
        plain_name=plain,
        aliases=() if is_flag else tuple(alias for alias in aliases if _WORDS.fullmatch(alias)),
        concept=concept_of(short),
        is_flag=is_flag,
        has_tone=any(point in _TONES for point in points),
    )


def _characters(code: str) -> str:
    return "".join(chr(int(point, 16)) for point in code.split("-"))
