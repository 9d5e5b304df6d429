"""Videos both ways: what moves where in a given one, and whether a drawn one shows it.

verifier/video_accuracy               true videos that the verifier reads right: what can be measured at all
lm/video_question_object_accuracy     "what moves where?": colour and shape named right
lm/video_question_direction_accuracy  the direction named right
lm/video_caption_accuracy             descriptions that say exactly what the video shows
lm/draw_video_object_accuracy         one object changes its place in every frame, and it is the one asked for
lm/draw_video_direction_accuracy      what moves goes one place a frame in the direction asked for
lm/draw_video_scene_accuracy          both, what stays is there, and nothing else
"""

from __future__ import annotations

from collections.abc import Sequence

from vilau_common.data.conversation import USER, VIDEO, Turn
from vilau_common.data.fields import CAPTIONS
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import Requirement, WorldDocument
from vilau_common.data.worlds.scenes.documents import MOTION
from vilau_common.data.worlds.scenes.motion import (
    FRAMES,
    WHAT_MOVES,
    Motion,
    MotionJudgement,
    MotionPrompt,
    judge_motion,
    parse_motion,
)
from vilau_unified_lm.document import DESCRIBE_VIDEO
from vilau_unified_lm.evaluation.batches import answers, batches, encode_documents, means
from vilau_unified_lm.evaluation.examples import Strip, described
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

ALL_RIGHT = MotionJudgement(object_right=True, direction_right=True, still_right=True)


def evaluate_videos(
    session: Session, world: World, documents: Sequence[WorldDocument], sampling: Sampling, seed: int
) -> tuple[dict[str, float], list[Strip]]:
    """The numbers above. Video i is drawn with the seed `seed + i`, every other one from its partial caption."""
    flags: list[tuple[str, bool]] = []
    strips: list[Strip] = []
    for document in documents:
        truth = parse_motion(document.record[CAPTIONS][0])
        read = truth is not None and judge_motion(truth, world.read(document.images)) == ALL_RIGHT
        flags.append(("verifier/video_accuracy", read))
    _ask(session, documents, flags, strips)
    _draw(session, world, documents, sampling, seed, flags, strips)
    return means(flags), strips


def _ask(
    session: Session,
    documents: Sequence[WorldDocument],
    flags: list[tuple[str, bool]],
    strips: list[Strip],
) -> None:
    codes = encode_documents(session, documents)

    def asked(question: str, stage: str) -> list[str]:
        turn = Turn(USER, VIDEO + question)
        prompts = [session.builder.conversation([turn], videos=[frames]) for frames in codes]
        return answers(session, prompts, stage)

    told = asked(WHAT_MOVES, "video questions")
    captions = asked(DESCRIBE_VIDEO, "video descriptions")
    for document, answer, caption in zip(documents, told, captions, strict=True):
        motion, said = Motion.from_json(document.record[MOTION]), parse_motion(answer)
        named = Requirement(motion.mover.shape, motion.mover.colour)
        object_right = said is not None and said.mover == named
        direction_right = said is not None and said.direction == motion.direction
        flags.append(("lm/video_question_object_accuracy", object_right))
        flags.append(("lm/video_question_direction_accuracy", direction_right))
        flags.append(("lm/video_caption_accuracy", _says(caption, motion)))
        strips.append(
            Strip(
                kind="question",
                pictures=list(document.images),
                labels=[],
                text=WHAT_MOVES,
                outcome=answer,
                right=object_right and direction_right,
            )
        )


def _draw(
    session: Session,
    world: World,
    documents: Sequence[WorldDocument],
    sampling: Sampling,
    seed: int,
    flags: list[tuple[str, bool]],
    strips: list[Strip],
) -> None:
    captions = [
        document.record[CAPTIONS][number % len(document.record[CAPTIONS])]
        for number, document in enumerate(documents)
    ]
    for start, chosen in batches(captions, "videos", "videos"):
        seeds = [seed + start + number for number in range(len(chosen))]
        for caption, frames in zip(chosen, session.film(chosen, FRAMES, sampling, seeds), strict=True):
            prompt, scenes = parse_motion(caption), world.read(frames)
            assert prompt is not None, "captions of the world are of its grammar"
            judgement = judge_motion(prompt, scenes)
            flags.append(("lm/draw_video_object_accuracy", judgement.object_right))
            flags.append(("lm/draw_video_direction_accuracy", judgement.direction_right))
            flags.append(("lm/draw_video_scene_accuracy", judgement == ALL_RIGHT))
            strips.append(
                Strip(
                    kind="drawing",
                    pictures=list(frames),
                    labels=[],
                    text=caption,
                    outcome="; ".join(described(scene) for scene in scenes),
                    right=judgement == ALL_RIGHT,
                    moving=True,
                )
            )


def _says(caption: str, motion: Motion) -> bool:
    """Whether a caption says exactly what the video shows."""
    full = [
        Requirement(item.shape, item.colour, item.size, item.place) for item in (motion.mover, *motion.still)
    ]
    return parse_motion(caption) == MotionPrompt(full[0], motion.direction, tuple(full[1:]))
