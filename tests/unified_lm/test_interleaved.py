"""Text and pictures in one sample, as the model decides: against a reference that knows no cache and no batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from slow_generation import draw_slowly, generate_slowly
from tiny_lm import CAPTIONS, POSITIONS, D, make_model, random_codes
from torch import Tensor, nn

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.request import (
    Begin,
    Event,
    Finish,
    Generated,
    ImagePart,
    PictureEvent,
    Request,
    TextEvent,
    TextPart,
    VideoPart,
)
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary

FREE = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
FRAMES = 2
ROOM = 60


class Eager(nn.Module):
    """A text head that likes certain tokens more than it would."""

    def __init__(self, head: nn.Module, likes: dict[int, float]) -> None:
        super().__init__()
        self.head, self.likes = head, likes

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden).clone()
        for token, more in self.likes.items():
            logits[..., token] += more
        return logits


@pytest.fixture
def keen(vocabulary: Vocabulary) -> UnifiedLM:
    """A model that opens images and videos now and then, and comes to an end."""
    model = make_model(vocabulary, grid_positions=True)
    likes = {vocabulary.image_start: 2.2, vocabulary.video_start: 2.2, vocabulary.end: 1.0}
    # Closing marks are never taken, however likely.
    likes |= {vocabulary.image_end: 9.0, vocabulary.video_end: 9.0}
    model.llm.set_output_embeddings(Eager(model.llm.get_output_embeddings(), likes))
    return model


@pytest.fixture(scope="module")
def prompts(builder: DocumentBuilder) -> list[Document]:
    captions = [builder.text(caption) for caption in CAPTIONS]
    begun = [Document(document.segments[:1]) for document in captions[:1]]
    asked = [builder.question_prompt(random_codes(n), caption) for n, caption in enumerate(CAPTIONS[:2])]
    return [*begun, *asked, *(Document((*d.segments[:1], d.segments[1])) for d in captions[1:])]


@pytest.fixture(scope="module")
def blank(builder: DocumentBuilder) -> Document:
    return builder.drawing_prompt("")


def requests_for(prompts: list[Document], blank: Document, positions: int = ROOM - 14) -> list[Request]:
    return [
        Request(prompt=prompt, negative=blank, seed=seed, positions=positions, frames=FRAMES)
        for seed, prompt in enumerate(prompts)
    ]


def plain(generated: Generated) -> list[list[int] | list[list[list[int]]]]:
    """Parts as lists, to compare."""
    return [part.ids if isinstance(part, TextPart) else part.codes.tolist() for part in generated.parts]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_equals_the_reference_and_opens_pictures_by_itself(
    keen: UnifiedLM,
    prompts: list[Document],
    blank: Document,
    vocabulary: Vocabulary,
    guidance: float,
) -> None:
    sampling = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=guidance)
    requests = requests_for(prompts, blank)
    settings = {"visual": sampling, "ends": (vocabulary.end,), "marks": vocabulary}
    results = Engine(keen).generate(requests, **settings)
    static = Engine(keen, "static").generate(requests, **settings)
    assert list(map(plain, static)) == list(map(plain, results))
    kinds: list[type] = []
    for request, result in zip(requests, results, strict=True):
        expected = generate_slowly(
            keen,
            request.prompt,
            blank,
            vocabulary,
            positions=request.positions,
            frames=FRAMES,
            sampling=sampling,
            seed=request.seed,
        )
        assert len(result.parts) == len(expected.parts)
        for part, wanted in zip(result.parts, expected.parts, strict=True):
            if isinstance(wanted, list):
                assert isinstance(part, TextPart) and part.ids == wanted
            else:
                assert isinstance(part, ImagePart | VideoPart)
                assert torch.equal(part.codes.view(-1, POSITIONS, D), wanted)
                assert isinstance(part, VideoPart) == (len(wanted) == FRAMES)
        assert (result.finish is Finish.END) == expected.ended
        kinds += [type(part) for part in result.parts]
    # What the test is about does happen.
    assert {TextPart, ImagePart, VideoPart} <= set(kinds)
    assert max(len(result.parts) for result in results) > 3
    assert len({len(result.parts) for result in results}) > 1


@pytest.mark.parametrize("compile", ["none", "static"])
def test_requests_of_every_kind_together_as_alone(
    keen: UnifiedLM,
    prompts: list[Document],
    blank: Document,
    builder: DocumentBuilder,
    vocabulary: Vocabulary,
    compile: str,
) -> None:
    """An image, a video, a free sample and short text in one batch; only what draws needs a negative prompt."""
    drawing, filming = builder.drawing_prompt(CAPTIONS[1]), builder.filming_prompt(CAPTIONS[0])
    size = {"negative": blank, "frames": FRAMES}
    requests = [
        Request(prompt=prompts[1], positions=6, seed=4),
        Request(prompt=drawing, begin=Begin.IMAGE, positions=POSITIONS, seed=1, **size),
        Request(prompt=prompts[0], positions=50, seed=2, **size),
        Request(prompt=filming, begin=Begin.VIDEO, positions=FRAMES * POSITIONS, seed=3, **size),
        Request(prompt=drawing, begin=Begin.IMAGE, positions=POSITIONS + 12, seed=7, **size),
    ]
    engine = Engine(keen, compile)
    text = Sampling(temperature=0.8, top_k=20, top_p=0.9)
    settings = {"visual": FREE, "text": text, "ends": (vocabulary.end,), "marks": vocabulary}
    together = engine.generate(requests, **settings)
    for request, result in zip(requests, together, strict=True):
        (alone,) = Engine(keen).generate([request], **settings)
        assert plain(alone) == plain(result) and alone.finish is result.finish
    (image,), (video,) = together[1].parts, together[3].parts
    assert isinstance(image, ImagePart) and isinstance(video, VideoPart)
    assert together[1].finish is together[3].finish is Finish.DRAWN
    assert torch.equal(image.codes.flatten(0, 1), draw_slowly(keen, drawing, blank, FREE, 1))
    away = builder.filming_prompt("")
    assert torch.equal(video.codes.flatten(0, 2), draw_slowly(keen, filming, away, FREE, 3, FRAMES))
    assert isinstance(together[4].parts[0], ImagePart) and len(together[4].parts) > 1  # it goes on behind it


def test_events_tell_the_whole_story(
    keen: UnifiedLM, prompts: list[Document], blank: Document, vocabulary: Vocabulary
) -> None:
    told: list[Event] = []
    results = Engine(keen).generate(
        requests_for(prompts, blank),
        visual=FREE,
        ends=(vocabulary.end,),
        marks=vocabulary,
        on_event=told.append,
    )
    for sample, result in enumerate(results):
        story: list[list[int] | list[list[int]]] = []
        drawn = -1
        for event in told:
            if event.sample != sample:
                continue
            if isinstance(event, TextEvent):
                if len(event.ids) == 1:
                    story.append([])
                assert event.ids[:-1] == story[-1]
                story[-1] = event.ids
            else:
                assert isinstance(event, PictureEvent)
                if len(event.codes) == 1:
                    story.append([])
                    drawn += 1
                assert event.number == drawn
                assert event.codes[:-1].tolist() == story[-1]
                assert event.positions in (POSITIONS, FRAMES * POSITIONS)
                story[-1] = event.codes.tolist()
        expected = [
            part.ids if isinstance(part, TextPart) else part.codes.reshape(-1, D).tolist()
            for part in result.parts
        ]
        assert story == expected


def test_what_stops_a_sample(keen: UnifiedLM, prompts: list[Document], blank: Document) -> None:
    """A callback's word, the number of text tokens, the number of positions; each for its own sample."""
    engine, prompt = Engine(keen), prompts[1]
    settings = {"visual": GREEDY, "text": Sampling(temperature=1.3, top_k=None, top_p=1.0, guidance=1)}
    free = Request(prompt=prompt, positions=12, seed=5)
    ((whole,),) = [plain(result) for result in engine.generate([free], **settings)]
    requests = [
        free,
        replace(free, tokens=4),
        replace(free, positions=5),
        free,
        replace(free, positions=0),
    ]
    results = engine.generate(requests, stop=lambda sample, ids: sample == 3 and ids == whole[:7], **settings)
    assert [plain(result) for result in results] == [
        [whole],
        [whole[:4]],
        [whole[:5]],
        [whole[:7]],
        [],
    ]
    finishes = [result.finish for result in results]
    assert finishes == [Finish.LENGTH, Finish.LENGTH, Finish.LENGTH, Finish.STOP, Finish.LENGTH]
    other = next(token for token in whole if token != whole[0])
    for ends in ((other, whole[0]), (other,)):
        later = engine.generate([free], ends=ends, **settings)[0]
        first = min(whole.index(end) for end in ends)
        assert later.finish is Finish.END and plain(later) == ([whole[:first]] if first else [])
    assert first > 0


def test_a_picture_is_never_opened_without_room(
    keen: UnifiedLM, prompts: list[Document], blank: Document, vocabulary: Vocabulary
) -> None:
    likes = {vocabulary.image_start: 1000.0, vocabulary.video_start: 2000.0}
    keen.llm.set_output_embeddings(Eager(keen.llm.get_output_embeddings(), likes))
    engine = Engine(keen)
    image, video = 1 + POSITIONS, 1 + FRAMES * POSITIONS
    kinds = {image - 1: [TextPart], image: [ImagePart], video - 1: [ImagePart, TextPart], video: [VideoPart]}
    for positions, wanted in kinds.items():
        requests = requests_for(prompts[:1], blank, positions)
        (result,) = engine.generate(requests, visual=FREE, marks=vocabulary)
        assert [type(part) for part in result.parts] == wanted
        used = sum(
            len(p.ids) if isinstance(p, TextPart) else 1 + p.codes[..., 0].numel() for p in result.parts
        )
        marks = 1 if len(wanted) > 1 else 0  # that closes it
        assert used + marks == positions


def test_what_cannot_be_is_told_before_anything_is_computed(
    keen: UnifiedLM,
    prompts: list[Document],
    blank: Document,
    builder: DocumentBuilder,
    vocabulary: Vocabulary,
) -> None:
    engine = Engine(keen)
    drawing = builder.drawing_prompt(CAPTIONS[0])

    def refused(sentence: str, visual: Sampling = FREE, **asked: object) -> None:
        request = Request(
            **{"prompt": drawing, "begin": Begin.IMAGE, "negative": blank, "positions": 9, **asked}
        )  # type: ignore[arg-type]
        with pytest.raises(UserError, match=sentence):
            engine.generate([request], visual=visual, marks=vocabulary)

    keen.llm.get_decoder().forward = None  # type: ignore[method-assign]
    refused("takes 9 positions, but only 8", positions=8)
    refused("takes 72 positions, but only 9", begin=Begin.VIDEO)
    refused("needs a negative prompt", negative=None)
    refused("2 depth temperatures, but a visual position has 4", Sampling(depth_temperatures=[1.0, 1.0]))
    open_end = Document(builder.question_prompt(random_codes(0), "").segments[:2])
    refused("a prompt that begins a picture must end at the mark", prompt=open_end)
    refused("a negative prompt must end at a mark", negative=open_end)
    refused("the model's context holds", positions=92)
    assert engine.generate([], visual=FREE) == []
    for compile, sentence in (
        ("graph", "model is on cpu; use compile=none"),
        ("fast", "none, static, graph"),
    ):
        with pytest.raises(UserError, match=sentence):
            Engine(keen, compile)
