"""The engine against a reference without any cache, and the independence of a prompt from its batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_lm import CAPTIONS, CONTEXT, POSITIONS, SIDE, D, K, last_hidden, make_model, random_codes
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder, ImageSegment, TextSegment
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.generation.sampling import Sampling, sample, uniform_draws
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.vocabulary import Vocabulary

FREE = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
TOKENS = 12


@pytest.fixture
def engine(model: UnifiedLM) -> Engine:
    return Engine(model)


@pytest.fixture(scope="module")
def prompts(builder: DocumentBuilder) -> list[Document]:
    """Drawing prompts of four lengths."""
    return [builder.drawing_prompt(caption) for caption in CAPTIONS]


@pytest.fixture(scope="module")
def blank(builder: DocumentBuilder) -> Document:
    return builder.drawing_prompt("")


@pytest.fixture(scope="module")
def asked(builder: DocumentBuilder) -> list[Document]:
    """Prompts for text of different lengths, with a picture and without."""
    return [
        builder.question_prompt(random_codes(0), "how many objects?"),
        Document((TextSegment((1, *builder.ids("a red")), supervised=False),)),
        builder.question_prompt(random_codes(1), "is there a large blue star at the top left?"),
        Document((TextSegment((1,), supervised=False),)),
    ]


@torch.no_grad()
def draw_slowly(model: UnifiedLM, prompt: Document, blank: Document, guidance: float) -> Tensor:
    """Greedy codes int64 [POSITIONS, D]: the whole sequence again for each position, all depths for each code."""
    drawn = torch.zeros(0, D, dtype=torch.long)
    for _ in range(POSITIONS):
        position = torch.zeros(1, D, dtype=torch.long)
        for level in range(D):
            logits = []
            for start in (prompt, blank):
                picture = ImageSegment(drawn.numpy(), supervised=False)
                hidden = last_hidden(model, Document((*start.segments, picture)))
                embeddings = model.image_tokenizer.embed_codes(position)
                logits.append(model.depth.logits(model.depth(hidden.unsqueeze(0), embeddings))[0, level])
            position[0, level] = (guidance * logits[0] + (1 - guidance) * logits[1]).argmax()
        drawn = torch.cat([drawn, position])
    return drawn


# --- drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_greedy_drawing_equals_the_reference_without_caches(
    engine: Engine, prompts: list[Document], blank: Document, guidance: float
) -> None:
    sampling = Sampling(temperature=0, guidance=guidance)
    drawn = engine.draw(prompts, blank, sampling, range(len(prompts)))
    assert drawn.shape == (len(prompts), SIDE, SIDE, D) and drawn.dtype == torch.int64
    pictures = []
    for prompt, codes in zip(prompts, drawn, strict=True):
        expected = draw_slowly(engine.model, prompt, blank, guidance)
        assert torch.equal(codes.flatten(0, 1), expected)
        pictures.append(tuple(expected.flatten().tolist()))
    assert len(set(pictures)) == (1 if guidance == 0 else len(prompts))  # the prompts matter, but not at 0


def alone(
    engine: Engine, prompts: Sequence[Document], blank: Document, sampling: Sampling, seeds: Sequence[int]
):
    drawn = [
        engine.draw([prompt], blank, sampling, [seed]) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return torch.cat(drawn)


@pytest.mark.parametrize("sampling", [FREE, Sampling(guidance=1.0), Sampling()], ids=str)
def test_prompts_of_different_lengths_together_as_one_at_a_time(
    engine: Engine, prompts: list[Document], blank: Document, sampling: Sampling
) -> None:
    seeds = [3, 1, 4, 15]
    together = engine.draw(prompts, blank, sampling, seeds)
    assert torch.equal(together, alone(engine, prompts, blank, sampling, seeds))
    assert ((together >= 0) & (together < K)).all()


def test_a_seed_fixes_the_picture_whatever_the_batch_and_another_gives_another(
    engine: Engine, prompts: list[Document], blank: Document
) -> None:
    one = engine.draw([prompts[1]], blank, FREE, [7])[0]
    first = engine.draw([prompts[1], prompts[3]], blank, FREE, [7, 8])
    last = engine.draw([prompts[0], prompts[0], prompts[2], prompts[1]], blank, FREE, [1, 2, 3, 7])
    same_prompt = engine.draw([prompts[1]] * 4, blank, FREE, [6, 7, 8, 7])
    for picture in (first[0], last[3], same_prompt[1], same_prompt[3]):
        assert torch.equal(picture, one)
    assert not torch.equal(same_prompt[0], one)
    assert not torch.equal(same_prompt[2], same_prompt[0])


def test_the_global_generator_has_no_part_in_it(
    engine: Engine, prompts: list[Document], blank: Document
) -> None:
    torch.manual_seed(1)
    one = engine.draw(prompts[:1], blank, FREE, [7])
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(engine.draw(prompts[:1], blank, FREE, [7]), one)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_code_has_a_random_number_of_its_own(
    vocabulary: Vocabulary, prompts: list[Document], blank: Document
) -> None:
    """With logits that nothing changes, codes are the draws themselves: by position, then depth."""
    model = make_model(vocabulary)
    torch.nn.init.zeros_(model.depth.head.weight)
    torch.nn.init.normal_(model.depth.head.bias)
    sampling, seeds = Sampling(temperature=2.0), [3, 1, 4, 15]
    drawn = Engine(model).draw(prompts, blank, sampling, seeds)
    uniform = uniform_draws(seeds, POSITIONS * D, torch.device("cpu")).flatten()
    expected = sample(model.depth.head.bias.expand(len(uniform), -1), uniform, sampling)
    assert torch.equal(drawn.flatten(), expected)


def test_guidance_of_one_never_reads_the_blank_prompt(
    engine: Engine, prompts: list[Document], blank: Document
) -> None:
    sampling = Sampling(guidance=1.0)
    one = engine.draw(prompts, blank, sampling, [1, 2, 3, 4])
    assert torch.equal(engine.draw(prompts, prompts[3], sampling, [1, 2, 3, 4]), one)
    # A guidance of almost one takes the other way round and comes to the same.
    nearly = engine.draw(prompts, blank, Sampling(guidance=1 + 1e-6), [1, 2, 3, 4])
    assert torch.equal(nearly, one)


def test_guidance_by_the_prompt_itself_changes_nothing(engine: Engine, prompts: list[Document]) -> None:
    plain = engine.draw(prompts[1:2], prompts[1], Sampling(guidance=1.0), [5])
    assert torch.equal(engine.draw(prompts[1:2], prompts[1], Sampling(guidance=4.0), [5]), plain)


def test_tells_of_each_position(engine: Engine, prompts: list[Document], blank: Document) -> None:
    told: list[int] = []
    engine.draw(prompts[:2], blank, GREEDY, [0, 1], on_position=told.append)
    assert told == list(range(POSITIONS))


def test_generation_is_without_dropout_and_gradients(
    vocabulary: Vocabulary, prompts: list[Document], blank: Document
) -> None:
    model = make_model(vocabulary).train()
    engine = Engine(model)
    assert not model.training
    drawn = engine.draw(prompts[:1], blank, GREEDY, [0])
    assert torch.equal(drawn, engine.draw(prompts[:1], blank, GREEDY, [0]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_picture_in_the_prompt_matters(
    vocabulary: Vocabulary, builder: DocumentBuilder, blank: Document
) -> None:
    """Editing and continuing are prompts as well: codes before the prompt's end reach what is drawn."""
    engine = Engine(make_model(vocabulary))
    drawn = []
    for seed in (0, 0, 1):
        picture = builder.question_prompt(random_codes(seed), "again?")
        prompt = Document((*picture.segments, TextSegment((vocabulary.image_start,), supervised=False)))
        drawn.append(engine.draw([prompt], blank, GREEDY, [0]))
        expected = draw_slowly(engine.model, prompt, blank, 1.0)
        assert torch.equal(drawn[-1].flatten(0, 2), expected)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# --- prompts ----------------------------------------------------------------------------------------------------


def prompt_of(length: int, vocabulary: Vocabulary) -> Document:
    return Document((TextSegment((*[5] * (length - 1), vocabulary.image_start), supervised=False),))


def test_a_prompt_that_leaves_no_room_is_told(
    vocabulary: Vocabulary, blank: Document, prompts: list[Document]
) -> None:
    engine = Engine(make_model(vocabulary))
    too_long = prompt_of(CONTEXT - POSITIONS + 1, vocabulary)
    sentence = f"a prompt has {len(too_long)} positions and {POSITIONS} are to follow, but .* holds {CONTEXT}"
    with pytest.raises(UserError, match=sentence):
        engine.draw([prompts[0], too_long], blank, GREEDY, [0, 1])
    with pytest.raises(UserError, match=sentence):
        engine.draw([prompts[0]], too_long, Sampling(), [0])
    with pytest.raises(UserError, match=f"has {CONTEXT} positions and 1 are to follow"):
        engine.write([prompt_of(CONTEXT, vocabulary)], vocabulary.end, 1, GREEDY, [0])
    fitting = prompt_of(CONTEXT - POSITIONS, vocabulary)
    assert engine.draw([fitting], blank, GREEDY, [0]).shape == (1, SIDE, SIDE, D)


def test_seeds_must_be_one_a_prompt(
    engine: Engine, prompts: list[Document], blank: Document, asked: list[Document]
) -> None:
    """Too few or too many would be shared out among the prompts without a word."""
    for seeds in ([1], [1, 2, 3], []):
        with pytest.raises(ValueError, match="one seed a prompt"):
            engine.draw(prompts[:2], blank, FREE, seeds)
        with pytest.raises(ValueError, match="one seed a prompt"):
            engine.write(asked[:2], 2, TOKENS, FREE, seeds)
