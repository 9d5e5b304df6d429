"""Interleaved documents as MMC4 has them: sentences, and images of which each belongs to a sentence.

    {"text_list": ["First …", "Then …"], "image_info": [{"image_name": "a.jpg", "matched_text_index": 1}, …]}

An image stands before its sentence. One whose file is not there is left out of its document, as links die; a document
that loses all of its images is unusable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vilau_common.data.conversation import IMAGE, without_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import INTERLEAVED
from vilau_common.data.sources.records import RecordsConfig, RecordSource


@dataclass(kw_only=True)
class InterleavedConfig(RecordsConfig):
    """MMC4-style documents."""


class Interleaved(RecordSource):
    """See the module's docstring."""

    name = "interleaved"
    noun = "documents"

    def __init__(self, config: InterleavedConfig) -> None:
        super().__init__(config)
        self._missing = 0

    def named(self, record: dict[str, Any]) -> list[str]:
        sentences, images = _sentences(record), record.get("image_info")
        if not isinstance(images, list) or not images:
            raise BadSample("no image_info: expected a list of images")
        placed = []
        for image in images:
            name, index = (
                (image.get("image_name"), image.get("matched_text_index"))
                if isinstance(image, dict)
                else (None, None)
            )
            if not isinstance(name, str) or type(index) is not int or not 0 <= index < len(sentences):
                raise BadSample(
                    f"image_info: {image} has no image_name, or no matched_text_index of one of the "
                    f"{len(sentences)} sentences"
                )
            placed.append((index, name))
        return [name for _, name in sorted(placed, key=lambda image: image[0])]

    def document(self, record: dict[str, Any]) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
        places = sorted(image["matched_text_index"] for image in record["image_info"])
        pictures, before = [], dict[int, int]()  # before each sentence so many pictures
        names = self.named(record)
        for place, name in zip(places, names, strict=True):
            if not (self.folder / name).is_file():
                self._missing += 1
                continue
            pictures.append(self.picture(name))
            before[place] = before.get(place, 0) + 1
        if not pictures:
            raise BadSample(f"none of its {len(names)} images is in {self.folder}, such as {names[0]}")
        # What sentences call <image> themselves is no place of an image.
        texts = [
            IMAGE * before.get(index, 0) + without_placeholders(sentence).strip()
            for index, sentence in enumerate(_sentences(record))
        ]
        return pictures, {INTERLEAVED: " ".join(text for text in texts if text)}

    def remarks(self) -> list[str]:
        if not self._missing:
            return []
        return [f"{self._missing:,} images are not in {self.folder} and left out of their documents"]


def _sentences(record: dict[str, Any]) -> list[str]:
    sentences = record.get("text_list")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise BadSample("no text_list: expected a list of sentences")
    if not any(sentence.strip() for sentence in sentences):
        raise BadSample("an empty document: its text_list holds no text")
    return sentences
