"""Edits: what an instruction makes of a picture, and whether all else stayed.

lm/edit_accuracy                what was asked for is changed, and nothing else; in all and by kind
lm/edit_changed_accuracy        what was asked for is changed
lm/edit_kept_accuracy           what was not asked for is as it was
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.data.worlds.scenes.documents import EDIT
from vilau_common.data.worlds.scenes.edits import Edit, judge_edit
from vilau_unified_lm.evaluation.batches import batches, means
from vilau_unified_lm.evaluation.examples import Strip, described
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session


def evaluate_edits(
    session: Session, world: World, documents: Sequence[WorldDocument], sampling: Sampling, seed: int
) -> tuple[dict[str, float], list[Strip]]:
    """The numbers above. Edit i is drawn with the seed `seed + i`, without guidance: no blank edit was trained."""
    plain = replace(sampling, guidance=1.0)
    flags: list[tuple[str, bool]] = []
    strips: list[Strip] = []
    for start, chosen in batches(documents, "edits", "edits"):
        edits = [Edit.from_json(document.record[EDIT]) for document in chosen]
        seeds = [seed + start + number for number in range(len(chosen))]
        sources = np.stack([document.images[0] for document in chosen])
        pictures = session.edit(sources, [edit.instruction for edit in edits], plain, seeds)
        readings = world.read(pictures)
        for document, edit, picture, reading in zip(chosen, edits, pictures, readings, strict=True):
            judgement = judge_edit(edit, reading)
            flags += [
                ("lm/edit_accuracy", judgement.right),
                (f"lm/edit_accuracy/{edit.kind}", judgement.right),
                ("lm/edit_changed_accuracy", judgement.changed),
                ("lm/edit_kept_accuracy", judgement.kept),
            ]
            strips.append(
                Strip(
                    kind=edit.kind,
                    pictures=[document.images[0], picture],
                    labels=["before", "after"],
                    text=edit.instruction,
                    outcome=described(reading),
                    right=judgement.right,
                )
            )
    return means(flags), strips
