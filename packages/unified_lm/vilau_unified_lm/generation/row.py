"""One sample's way through generation, as the host knows it: text, pictures, and the marks between them.

    text token -> text               <image_start> -> h*w visual positions        -> <image_end> -> text
    closing token -> done            <video_start> -> frames * h*w visual positions -> <video_end> -> text

Only what a text token will be needs the device's answer; all else is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto

from vilau_unified_lm.generation.request import Begin, Finish, Request
from vilau_unified_lm.vocabulary import Vocabulary

Stop = Callable[[int, list[int]], bool]
"""(index of the request, ids of its present text) -> whether this sample ends here."""


class Phase(Enum):
    TEXT = auto()  # the next token is sampled
    VISUAL = auto()  # the next position is drawn
    CLOSING = auto()  # the next token is the mark that closes a picture
    DONE = auto()


class Feed(Enum):
    """What the LM reads of a row in one step."""

    NOTHING = auto()
    TOKEN = auto()
    OPENING = auto()  # a token that opens a picture
    VISUAL = auto()
    UNREAD = auto()  # a visual position that nothing reads any more


NOTHING_READ = (Feed.NOTHING, Feed.UNREAD)


@dataclass
class Picture:
    """An image or a video that is drawn, or was."""

    start: int  # the row's visual positions before it
    positions: int  # of the whole
    video: bool
    drawn: int = 0


class Row:
    """One request's progress. Each step of the batch calls one of `take`, `draw` and `close`, as the phase says."""

    def __init__(
        self,
        index: int,
        request: Request,
        grid: int,
        ends: Collection[int],
        marks: Vocabulary | None,
        stop: Stop | None,
    ) -> None:
        """grid: visual positions of a picture. marks: None for a row that opens and closes no picture."""
        self.index, self.request, self.grid = index, request, grid
        self.ends, self.marks, self.stop = ends, marks, stop
        self.room = request.positions
        self.parts: list[list[int] | Picture] = []
        self.sampled = self.tokens = self.visual = 0  # tokens drawn, of these text, visual positions
        self.finish = Finish.LENGTH
        self.token = 0  # what a step feeds, where that is a token
        self.phase = Phase.TEXT
        if request.begin is not Begin.TEXT:
            self._open(request.begin is Begin.VIDEO)
        elif not self._more_text():
            self.phase = Phase.DONE
        openable = [self.size(video) for video in (False, True) if self.may_open(video)]
        # Positions of the largest picture that it may draw; 0: it draws none.
        self.largest = max([*openable, *(picture.positions for picture in self.pictures)], default=0)

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    def may_open(self, video: bool) -> bool:
        """Whether a mark and the picture behind it have room."""
        return self.marks is not None and 1 + self.size(video) <= self.room

    def size(self, video: bool) -> int:
        """Visual positions of an image or a video."""
        return self.grid * (self.request.frames if video else 1)

    def take(self, token: int) -> Feed:
        """A sampled token."""
        self.sampled += 1
        self.token = token
        if token in self.ends:
            return self._done(Finish.END)
        self.room -= 1
        if self.marks is not None and token in (self.marks.image_start, self.marks.video_start):
            self._open(token == self.marks.video_start)
            return Feed.OPENING
        if not self.parts or isinstance(self.parts[-1], Picture):
            self.parts.append([])
        text = self.parts[-1]
        assert isinstance(text, list)
        text.append(token)
        self.tokens += 1
        if self.stop is not None and self.stop(self.index, text):
            return self._done(Finish.STOP)
        return Feed.TOKEN if self._more_text() else self._done(Finish.LENGTH)

    def draw(self) -> Feed:
        """A visual position."""
        picture = self.parts[-1]
        assert isinstance(picture, Picture)
        picture.drawn += 1
        self.visual += 1
        self.room -= 1
        if picture.drawn < picture.positions:
            return Feed.VISUAL
        if self.marks is not None and self.room:
            self.phase = Phase.CLOSING
            return Feed.VISUAL
        self._done(Finish.DRAWN)
        return Feed.UNREAD

    def close(self) -> Feed:
        """The mark behind a picture."""
        assert self.marks is not None
        self.token = self.marks.video_end if self.pictures[-1].video else self.marks.image_end
        self.room -= 1
        self.phase = Phase.TEXT
        return Feed.TOKEN if self._more_text() else self._done(Finish.LENGTH)

    def _more_text(self) -> bool:
        limit = self.request.tokens
        return self.room > 0 and (limit is None or self.tokens < limit)

    def _open(self, video: bool) -> None:
        self.parts.append(Picture(self.visual, self.size(video), video))
        self.phase = Phase.VISUAL

    def _done(self, finish: Finish) -> Feed:
        self.finish = finish
        self.phase = Phase.DONE
        return Feed.NOTHING
