"""Documents of several pictures: videos, edits, shots and stories of a world's test splits, each judged in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vilau_common.data.split import load_documents
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.data.worlds.scenes.documents import EDIT_KIND, SHOTS_KIND, STORY_KIND, VIDEO_KIND
from vilau_unified_lm.evaluation.edits import evaluate_edits
from vilau_unified_lm.evaluation.examples import ExampleWriter, Strip
from vilau_unified_lm.evaluation.shots import evaluate_shots
from vilau_unified_lm.evaluation.stories import evaluate_stories
from vilau_unified_lm.evaluation.videos import evaluate_videos
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

Judged = tuple[dict[str, float], list[Strip]]
"""Numbers, and strips for the report."""

KINDS: dict[str, Callable[[Session, World, Sequence[WorldDocument], Sampling, int], Judged]] = {
    VIDEO_KIND: evaluate_videos,
    EDIT_KIND: evaluate_edits,
    SHOTS_KIND: evaluate_shots,
    STORY_KIND: evaluate_stories,
}


def evaluate_documents(
    session: Session,
    world: World,
    data: Path,
    split: str,
    *,
    prefix: str,
    limit: int | None,
    sampling: Sampling,
    seed: int,
    examples: ExampleWriter,
) -> dict[str, float]:
    """The numbers of every kind that the prepared data have, by their keys in results.json."""
    results: dict[str, float] = {}
    for kind, evaluate in KINDS.items():
        directory = data / kind / split
        if directory.is_dir():
            documents = load_documents(directory, limit)
            numbers, strips = evaluate(session, world, documents, sampling, seed)
            results |= {f"{prefix}{name}": value for name, value in numbers.items()}
            examples.strips(kind, strips, held_out=bool(prefix))
    return results
