"""Prepared splits of a built-in world, whole in memory, for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import image_field, images_field, json_field, text_list
from vilau_common.data.shards import read_shards
from vilau_common.data.worlds.scene import Question, Scene, WorldDocument
from vilau_common.errors import UserError


@dataclass
class Split:
    images: npt.NDArray[np.uint8]  # [N, H, W, 3]
    captions: list[list[str]]  # of each picture; the first one says everything that is known
    questions: list[list[Question]]
    scenes: list[Scene | None]  # None where the source does not tell all of it

    def known(self) -> npt.NDArray[np.int64]:
        """Indices of the pictures whose whole scene is known."""
        return np.array([index for index, scene in enumerate(self.scenes) if scene is not None], np.int64)


def load_split(directory: Path) -> Split:
    """Read a split. Raises UserError where it is not prepared or a sample is damaged: a test set must be whole."""
    images, captions, questions, scenes = [], [], [], []
    for key, fields in read_shards(directory):
        try:
            record = json_field(fields)
            images.append(image_field(fields))
            captions.append(text_list(record, "captions"))
        except BadSample as error:
            raise UserError(f"{directory}: sample {key} of an evaluation set is damaged: {error}") from None
        questions.append([Question(**question) for question in record.get("questions", [])])
        scene = record.get("scene")
        scenes.append(None if scene is None else Scene.from_json(scene))
    return Split(np.stack(images), captions, questions, scenes)


def load_documents(directory: Path, limit: int | None) -> list[WorldDocument]:
    """The first documents of a split (null: all). Raises UserError as `load_split` does."""
    documents = []
    for key, fields in islice(read_shards(directory), limit):
        try:
            record = json_field(fields)
            documents.append(WorldDocument(key, np.stack(images_field(fields, record)), record))
        except BadSample as error:
            raise UserError(f"{directory}: sample {key} of an evaluation set is damaged: {error}") from None
    return documents
