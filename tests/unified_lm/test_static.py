"""Fixed shapes and captured graphs: the same tokens as without, and nothing asked of the device on the way."""

from __future__ import annotations

import pytest
import tape
import torch
from slow_generation import draw_slowly, write_slowly
from tiny_lm import CAPTIONS, POSITIONS, SIDE, D, make_model, random_codes
from torch import Tensor

from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.decoding import Decoding
from vilau_unified_lm.generation.engine import GREEDY, PLACES, Engine
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary

FREE = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
TOKENS = 12


@pytest.fixture(params=["static", "graph"])
def fixed(request: pytest.FixtureRequest, model: UnifiedLM, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of fixed shapes; its graphs are tapes."""
    tape.install(monkeypatch)
    engine = Engine(model, "static")
    engine.compile = request.param
    return engine


@pytest.fixture(scope="module")
def prompts(builder: DocumentBuilder) -> list[Document]:
    return [builder.drawing_prompt(caption) for caption in CAPTIONS]


@pytest.fixture(scope="module")
def blank(builder: DocumentBuilder) -> Document:
    return builder.drawing_prompt("")


def test_pictures_are_those_of_the_reference(fixed: Engine, prompts: list[Document], blank: Document) -> None:
    seeds = [3, 1, 4, 15]
    drawn = fixed.draw(prompts, blank, FREE, seeds)
    assert torch.equal(drawn, Engine(fixed.model).draw(prompts, blank, FREE, seeds))
    assert torch.equal(drawn[1].flatten(0, 1), draw_slowly(fixed.model, prompts[1], blank, FREE, 1))
    # 9 positions, but the last is not read.
    assert tape.Tape.replays == (2 * POSITIONS - 1 if fixed.compile == "graph" else 0)


def test_videos_are_those_of_the_reference(
    fixed: Engine, builder: DocumentBuilder, prompts: list[Document]
) -> None:
    filming, blank = [builder.filming_prompt(caption) for caption in CAPTIONS], builder.filming_prompt("")
    drawn = fixed.film(filming, blank, 2, FREE, [3, 1, 4, 15])
    assert torch.equal(drawn, Engine(fixed.model).film(filming, blank, 2, FREE, [3, 1, 4, 15]))


def test_texts_are_those_of_the_reference(fixed: Engine, builder: DocumentBuilder) -> None:
    asked = [builder.question_prompt(random_codes(n), text) for n, text in enumerate(["what?", "how many?"])]
    whole = [write_slowly(fixed.model, prompt, TOKENS) for prompt in asked]
    assert fixed.write(asked, -1, TOKENS, GREEDY, [0, 0]) == whole
    end = whole[1][4]
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert fixed.write(asked, end, TOKENS, GREEDY, [0, 0]) == expected


def test_prompts_of_one_token(fixed: Engine, vocabulary: Vocabulary, builder: DocumentBuilder) -> None:
    begin = Document(builder.text("").segments[:1])
    assert len(begin) == 1
    expected = write_slowly(fixed.model, begin, 5)
    assert fixed.write([begin] * 2, -1, 5, GREEDY, [0, 1]) == [expected] * 2
    assert Engine(fixed.model).write([begin] * 2, -1, 5, GREEDY, [0, 1]) == [expected] * 2


def test_the_next_batch_of_its_size_uses_the_same_memory_and_finds_nothing_in_it(
    fixed: Engine, prompts: list[Document], blank: Document
) -> None:
    reference = Engine(fixed.model)
    kept = []
    for chosen, seeds, sampling in (
        (prompts[:2], [1, 2], FREE),
        (prompts[2:], [3, 4], FREE),  # of other lengths
        (prompts[:2], [1, 2], FREE),
        (prompts[:2], [1, 2], Sampling(temperature=0.9)),
        (prompts[:3], [1, 2, 3], FREE),
    ):
        drawn = fixed.draw(chosen, blank, sampling, seeds)
        assert torch.equal(drawn, reference.draw(chosen, blank, sampling, seeds))
        kept.append((fixed._states.item, fixed._painters.item))
    states, painters = zip(*kept, strict=True)
    assert all(state is states[0] for state in states[:4]) and states[4] is not states[0]
    # Other settings: another depth loop.
    assert all(painter is painters[0] for painter in painters[:3]) and painters[3] is not painters[0]


def test_memory_is_allocated_once_and_holds_the_prompt_and_what_follows(
    model: UnifiedLM, prompts: list[Document], blank: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Decoding] = []
    begin, advance = Decoding.begin, Decoding.advance
    memory: list[tuple[int, ...]] = []

    def addresses(state: Decoding) -> tuple[int, ...]:
        return tuple(x.data_ptr() for layer in state.cache.layers for x in (layer.keys, layer.values))

    monkeypatch.setattr(
        Decoding, "begin", lambda state, *inputs: states.append(state) or begin(state, *inputs)
    )
    monkeypatch.setattr(
        Decoding, "advance", lambda state, *inputs: advance(state, *inputs) or memory.append(addresses(state))
    )
    for compile, rounded in (("none", lambda n: n), ("static", lambda n: -(-n // PLACES) * PLACES)):
        memory.clear()
        Engine(model, compile).draw(prompts, blank, FREE, [0, 1, 2, 3])
        assert len(memory) == POSITIONS - 1 and len(set(memory)) == 1
        places = rounded(max(map(len, prompts)) + POSITIONS)
        for layer in states[-1].cache.layers:
            assert layer.keys.shape == layer.values.shape == (2 * len(prompts), places, 2, 8)


@pytest.mark.parametrize("compile", ["none", "static"])
def test_nothing_is_asked_of_the_device_while_pictures_are_drawn(
    vocabulary: Vocabulary, builder: DocumentBuilder, compile: str
) -> None:
    """On the meta device, which has shapes and no values: whatever waits for one fails."""
    prompts = [builder.drawing_prompt(caption) for caption in CAPTIONS]
    engine = Engine(make_model(vocabulary).to("meta"), compile)
    drawn = engine.draw(prompts, builder.drawing_prompt(""), FREE, [0, 1, 2, 3])
    assert drawn.device.type == "meta" and drawn.shape == (4, SIDE, SIDE, D)
    with pytest.raises(RuntimeError, match="meta"):  # text asks once a token
        engine.write(prompts, vocabulary.end, 3, GREEDY, [0, 1, 2, 3])


def test_a_step_writes_to_its_own_place_and_reads_nothing_else(
    model: UnifiedLM, prompts: list[Document]
) -> None:
    """What lies behind a row's place, or before its prompt, does not matter."""
    batch = left_padded(prompts, D, 96, 10)
    features = model.image_tokenizer.embed_codes(batch.codes).sum(dim=-2)
    rows, length = batch.token_ids.shape
    with torch.inference_mode():
        inputs = model.embed(batch, features)
        steps = torch.randn(4, rows, inputs.shape[-1])

        def run(noise: float, static: bool) -> list[Tensor]:
            state = Decoding(model.llm, rows, length + 10, static)
            state.begin(batch, inputs)
            empty = batch.document_ids == 0
            for layer in state.cache.layers:
                for memory in (layer.keys, layer.values):
                    memory[:, length:] += noise
                    memory[:, :length][empty] += noise
            hidden = []
            for step in steps:
                state.advance(step)
                hidden.append(state.hidden)
            return hidden

        expected = run(0.0, static=False)
        for noise, static in ((100.0, False), (0.0, True), (100.0, True)):
            for mine, wanted in zip(run(noise, static), expected, strict=True):
                torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
