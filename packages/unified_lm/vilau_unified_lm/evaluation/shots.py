"""In-context labelling: names that only the labelled pictures before the last one tell.

lm/shots_<n>_accuracy   the last picture's name after n labelled pictures; with 0 it can only be guessed
"""

from __future__ import annotations

from collections.abc import Sequence

from vilau_common.data.conversation import read_turns
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.scene import WorldDocument
from vilau_unified_lm.evaluation.batches import answers, encode_documents, means
from vilau_unified_lm.evaluation.examples import Strip
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

COUNTS = (0, 2, 4)


def evaluate_shots(
    session: Session, world: World, documents: Sequence[WorldDocument], sampling: Sampling, seed: int
) -> tuple[dict[str, float], list[Strip]]:
    """The numbers above. The fewer shots are the first ones of the same document, the picture to label is the same."""
    flags: list[tuple[str, bool]] = []
    strips: list[Strip] = []
    every = encode_documents(session, documents)
    for count in COUNTS:
        prompts, expected, said = [], [], []
        for document, codes in zip(documents, every, strict=True):
            turns = read_turns(document.record)
            *_, question, answer = turns
            before = turns[: 2 * count]
            images = [*codes[:count], codes[-1]]
            prompts.append(session.builder.conversation([*before, question], images=images))
            expected.append(answer.text)
            said.append([turn.text for turn in before[1::2]])
        texts = answers(session, prompts, f"{count} shots")
        for document, labels, name, text in zip(documents, said, expected, texts, strict=True):
            flags.append((f"lm/shots_{count}_accuracy", text == name))
            strips.append(
                Strip(
                    kind=f"{count} shots",
                    pictures=[*document.images[:count], document.images[-1]],
                    labels=[*labels, f"{text} (right: {name})" if text != name else text],
                    text=f"after {count} labelled pictures",
                    outcome=text,
                    right=text == name,
                )
            )
    return means(flags), strips
