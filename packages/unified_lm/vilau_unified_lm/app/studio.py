"""What the page asks of a model: pictures as they are drawn, answers as they are written. It knows no page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from vilau_common.data.conversation import IMAGE, PLACEHOLDERS, USER, VIDEO, Turn, without_placeholders
from vilau_common.errors import UserError
from vilau_common.images import Picture
from vilau_unified_lm.app.uploads import read_picture, read_upload
from vilau_unified_lm.app.worker import Worker
from vilau_unified_lm.document import Codes, Document
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.generation.request import Event, TextEvent
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import GREY, Session, Watcher

REPLACEMENT = "\ufffd"  # what stands for a character whose bytes are not all there


@dataclass(frozen=True)
class Drawn:
    """Pictures as far as they are drawn, each uint8 [H, W, 3]."""

    pictures: list[Picture]
    share: float  # of them, in [0, 1]


@dataclass(frozen=True)
class Message:
    """One message of a chat. files: pictures and videos, which stand before the text."""

    role: str  # USER or ASSISTANT
    text: str
    files: tuple[Path, ...] = ()


class Studio:
    """A session, and the one thread that works with it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._worker = Worker()

    def draw(
        self, prompt: str, sampling: Sampling, *, negative: str = "", seed: int = 0, count: int = 1
    ) -> Iterator[Drawn]:
        """`count` pictures of a prompt with the seeds seed, seed + 1, …, first grey and last whole.

        Closing the iterator ends the drawing. Raises UserError for an empty prompt, and as `Session.draw` does.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty; say what to draw")

        def paint(seeds: Sequence[int], watch: Watcher) -> Picture:
            return self.session.draw([prompt] * len(seeds), sampling, seeds, negative, watch)

        return self._painting(paint, seed, count)

    def edit(
        self, file: Path | None, instruction: str, sampling: Sampling, *, seed: int = 0, count: int = 1
    ) -> Iterator[Drawn]:
        """`count` pictures of a picture file changed as the instruction says; else as `draw`.

        Raises UserError for a file that is missing or no picture, and for an empty instruction, too.
        """
        if file is None:
            raise UserError("there is no picture to change; upload one")
        if not instruction.strip():
            raise UserError("the instruction is empty; say what to change")
        picture = read_picture(file, self.session.image_tokenizer.image_size)

        def paint(seeds: Sequence[int], watch: Watcher) -> Picture:
            same = np.stack([picture] * len(seeds))
            return self.session.edit(same, [instruction] * len(seeds), sampling, seeds, watch)

        return self._painting(paint, seed, count)

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int, frames: int, together: bool
    ) -> Iterator[str]:
        """The likeliest answer to the last message, which is the user's, as far as it is written.

        frames: taken of each video. together: all messages are one conversation; else the last one stands alone, with
        the newest files before it where it has none of its own. Closing the iterator ends the writing. Raises UserError
        for files that cannot be read, and for a conversation longer than the model's context.
        """
        if not messages or not messages[-1].text.strip():
            raise UserError("the message has no text; ask something")
        for message in messages:
            if message.role == USER and any(place in message.text for place in PLACEHOLDERS):
                raise UserError(
                    f"{' and '.join(PLACEHOLDERS)} stand for files; upload them instead of writing them"
                )
        asked = list(messages) if together else [_alone(messages)]

        def work(tell: Callable[[str], None]) -> str:
            prompt = self._conversation(asked, frames)

            def listen(event: Event) -> None:
                if isinstance(event, TextEvent):
                    # A character of several tokens is shown when it is whole.
                    tell(self.session.text(event.ids).rstrip(REPLACEMENT).rstrip())

            end = self.session.builder.chat.end
            (ids,) = self.session.engine.write([prompt], end, max_tokens, GREEDY, [0], listen)
            return self.session.text(ids)

        return self._worker.stream(work)

    def _painting(
        self, paint: Callable[[Sequence[int], Watcher], Picture], seed: int, count: int
    ) -> Iterator[Drawn]:
        """What `paint` paints with `count` seeds, from grey to whole."""
        if count < 1:
            raise UserError(f"{count} pictures are asked for; draw at least 1")
        if seed < 0:
            raise UserError(f"the seed is {seed}; it must be 0 or above")
        side = self.session.image_tokenizer.image_size

        def work(tell: Callable[[Drawn], None]) -> Drawn:
            pictures = [np.full((side, side, 3), GREY, np.uint8)] * count
            tell(Drawn(list(pictures), 0.0))

            def watch(sample: int, picture: Picture, share: float) -> None:
                pictures[sample] = picture
                if sample == count - 1:
                    tell(Drawn(list(pictures), share))

            return Drawn(list(paint([seed + index for index in range(count)], watch)), 1.0)

        return self._worker.stream(work)

    def _conversation(self, messages: Sequence[Message], frames: int) -> Document:
        """The prompt of the answer to the last message."""
        size = self.session.image_tokenizer.image_size
        turns: list[Turn] = []
        images: list[Codes] = []
        videos: list[Sequence[Codes]] = []
        for message in messages:
            places = ""
            for file in message.files:
                upload = read_upload(file, size, frames)
                codes = list(self.session.encode(upload.frames))
                places += VIDEO if upload.video else IMAGE
                if upload.video:
                    videos.append(codes)
                else:
                    images += codes
            turns.append(Turn(message.role, places + without_placeholders(message.text)))
        return self.session.builder.conversation(turns, images, videos)


def _alone(messages: Sequence[Message]) -> Message:
    """The last message with the newest files there are."""
    last = messages[-1]
    files = next((message.files for message in reversed(messages) if message.files), ())
    return replace(last, files=last.files or files)


@dataclass(frozen=True)
class Training:
    """What an LM was trained on. forms: of document; empty where it is not known.

    remembers: whether it saw conversations; one trained on questions that stand alone knows no earlier turn.
    """

    forms: frozenset[str]
    remembers: bool


def read_training(run: Path) -> Training:
    """What config.yaml says of an LM's run directory; a converted model has none."""
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = settings.get("data", {})
    weights = [(part["form"], part["weight"]) for part in data.get("blend", ())]
    weights = weights or list(data.get("mixture", {}).items())
    forms = frozenset(form for form, weight in weights if weight > 0)
    return Training(forms, "conversation" in forms or not data.get("independent_questions", False))
