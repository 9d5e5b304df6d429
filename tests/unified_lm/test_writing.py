"""The engine writing text, against a reference without any cache, and how prompts are padded."""

from __future__ import annotations

import pytest
import torch
from slow_generation import write_slowly
from tiny_lm import CONTEXT, POSITIONS, D, as_tensor, make_model, random_codes

from vilau_unified_lm.document import Document, DocumentBuilder, TextSegment
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.prompts import left_padded
from vilau_unified_lm.generation.request import TextEvent
from vilau_unified_lm.generation.sampling import Sampling, text_seed, uniform_draws
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import pack
from vilau_unified_lm.vocabulary import Vocabulary

TOKENS = 12


@pytest.fixture
def engine(model: UnifiedLM) -> Engine:
    return Engine(model)


@pytest.fixture(scope="module")
def asked(builder: DocumentBuilder) -> list[Document]:
    """Prompts for text of different lengths, with a picture and without."""
    return [
        builder.question_prompt(random_codes(0), "how many objects?"),
        Document((TextSegment((1, *builder.ids("a red")), supervised=False),)),
        builder.question_prompt(random_codes(1), "is there a large blue star at the top left?"),
        Document((TextSegment((1,), supervised=False),)),
    ]


def test_greedy_writing_equals_the_reference_without_caches(engine: Engine, asked: list[Document]) -> None:
    never = -1  # no token ends the text
    written = engine.write(asked, never, TOKENS, GREEDY, range(len(asked)))
    assert written == [write_slowly(engine.model, prompt, TOKENS) for prompt in asked]
    assert len({tuple(ids) for ids in written}) == len(asked)


def test_writing_stops_at_the_end_each_row_for_itself(engine: Engine, asked: list[Document]) -> None:
    whole = [write_slowly(engine.model, prompt, TOKENS) for prompt in asked]
    ends = {token for ids in whole for token in ids}
    assert len(ends) > 5
    for end in ends:
        expected = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
        assert engine.write(asked, end, TOKENS, GREEDY, range(len(asked))) == expected
        assert any(len(ids) < TOKENS for ids in expected)


def test_writing_stops_early_where_every_row_has_ended(
    engine: Engine, asked: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = asked[0]
    whole = write_slowly(engine.model, prompt, TOKENS)
    steps = []
    backbone = engine.model.llm.model.forward
    monkeypatch.setattr(
        engine.model.llm.model, "forward", lambda **inputs: steps.append(None) or backbone(**inputs)
    )
    assert engine.write([prompt, prompt], whole[0], TOKENS, GREEDY, [0, 1]) == [[], []]
    assert len(steps) == 1  # the prompt's pass alone


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, top_k=40, top_p=0.9)], ids=str)
def test_prompts_together_as_one_at_a_time(engine: Engine, asked: list[Document], sampling: Sampling) -> None:
    end, seeds = 50, [3, 1, 4, 15]
    together = engine.write(asked, end, TOKENS, sampling, seeds)
    one_by_one = [
        engine.write([prompt], end, TOKENS, sampling, [seed])[0]
        for prompt, seed in zip(asked, seeds, strict=True)
    ]
    assert together == one_by_one
    assert engine.write(asked[:1], end, TOKENS, sampling, [99])[0] != together[0]


def test_a_longer_answer_begins_as_the_shorter_one(engine: Engine, asked: list[Document]) -> None:
    short = engine.write(asked, -1, 5, Sampling(), [1, 2, 3, 4])
    long = engine.write(asked, -1, 20, Sampling(), [1, 2, 3, 4])
    assert [ids[:5] for ids in long] == short


def test_every_token_has_a_random_number_of_its_own(vocabulary: Vocabulary, asked: list[Document]) -> None:
    model = make_model(vocabulary)
    torch.nn.init.zeros_(model.llm.lm_head.weight)  # every token is as likely as any other
    written = Engine(model).write(asked, -1, 20, Sampling(top_k=None, top_p=1.0), [1, 2, 3, 4])
    assert all(len(set(ids)) > 15 for ids in written)


def test_guidance_does_not_apply_to_text(engine: Engine, asked: list[Document]) -> None:
    plain = engine.write(asked, -1, 5, Sampling(guidance=1.0), [1, 2, 3, 4])
    assert engine.write(asked, -1, 5, Sampling(guidance=5.0), [1, 2, 3, 4]) == plain


def test_tells_of_each_token_and_of_no_closing_one(engine: Engine, asked: list[Document]) -> None:
    whole = [write_slowly(engine.model, prompt, TOKENS) for prompt in asked]
    end = whole[0][3]
    told: list[TextEvent] = []
    written = engine.write(asked, end, TOKENS, GREEDY, range(len(asked)), told.append)
    for row, ids in enumerate(written):
        mine = [event.ids for event in told if event.sample == row]
        assert mine == [ids[: length + 1] for length in range(len(ids))]
    assert len(written[0]) <= 3


def test_text_and_pictures_of_a_seed_have_nothing_in_common() -> None:
    device = torch.device("cpu")
    seeds = [0, 1, 2, -1, 2**31]
    others = [text_seed(seed) for seed in seeds]
    assert len({*seeds, *others}) == 2 * len(seeds)
    pictures, texts = uniform_draws(seeds, 4000, device), uniform_draws(others, 4000, device)
    correlation = torch.corrcoef(torch.cat([pictures, texts]))
    assert (correlation - torch.eye(2 * len(seeds))).abs().max() < 0.1


def test_left_padding_moves_whole_rows(asked: list[Document]) -> None:
    batch = left_padded(asked, D, CONTEXT, 0)
    longest = max(map(len, asked))
    assert batch.token_ids.shape == (len(asked), longest)
    visual = 0
    for row, prompt in enumerate(asked):
        plain = pack([[prompt]], len(prompt), D)
        for name in ("token_ids", "visual_mask", "position_ids", "document_ids"):
            assert torch.equal(getattr(batch, name)[row, longest - len(prompt) :], getattr(plain, name)[0])
        assert (batch.document_ids[row, : longest - len(prompt)] == 0).all()
        assert not batch.visual_mask[row, : longest - len(prompt)].any()
        here = slice(visual, visual + len(plain.codes))
        assert torch.equal(batch.codes[here], plain.codes)
        assert torch.equal(batch.grid_index[here], plain.grid_index)
        visual = here.stop
    assert visual == len(batch.codes) == 2 * POSITIONS
    assert torch.equal(batch.codes[:POSITIONS], as_tensor(random_codes(0)))
