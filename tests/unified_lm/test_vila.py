"""VILA: patches to places, what reaches the text logits, answers with and without caches, saving, learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_lm import CAPTIONS, CONTEXT, SIDE, assert_same_state, state_of
from tiny_vila import (
    TURNS,
    alone,
    as_images,
    load_clip_at,
    make_vila,
    picture_batch,
    random_picture,
    reading_forms,
    save_clip,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vilau_common.errors import UserError
from vilau_common.training.task import check_parameter_groups
from vilau_unified_lm.document import Document, DocumentBuilder, TextSegment
from vilau_unified_lm.losses import StepTargets, unified_loss
from vilau_unified_lm.session import Session
from vilau_unified_lm.vila.config import VilaProjectorConfig
from vilau_unified_lm.vila.data import PictureBatch, PictureDocument, picture_places, picture_vocabulary
from vilau_unified_lm.vila.model import VilaModel, is_vila, load_vila
from vilau_unified_lm.vila.projector import VilaProjector, neighbours_joined
from vilau_unified_lm.vila.session import VilaSession
from vilau_unified_lm.vila.task import VilaTask
from vilau_vision_tower.clip import PretrainedClip

LENGTH = 150


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> PretrainedClip:
    torch.manual_seed(0)
    return load_clip_at(save_clip(tmp_path_factory.mktemp("clip"), tokenizer))


@pytest.fixture(scope="module")
def builder(tokenizer: PreTrainedTokenizerFast) -> DocumentBuilder:
    return DocumentBuilder(tokenizer, picture_vocabulary(tokenizer))


@pytest.fixture(params=[("mlp", 1), ("linear", 2)], ids=["mlp", "linear_downsampled"])
def model(
    request: pytest.FixtureRequest, clip: PretrainedClip, tokenizer: PreTrainedTokenizerFast
) -> VilaModel:
    kind, downsample = request.param
    return make_vila(clip, tokenizer, kind=kind, downsample=downsample)


@pytest.fixture
def rows(model: VilaModel, builder: DocumentBuilder) -> list[list[PictureDocument]]:
    documents = reading_forms(builder, model.places)
    return [documents[:1] + documents[2:4], documents[1:2], documents[4:]]


def loss_of(model: VilaModel, batch: PictureBatch) -> Tensor:
    return unified_loss(model(batch), StepTargets.of([batch.sequence], model.device), "modality").text


# --- the projector ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (3, 3), (3, 4), (2, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("factor", [1, 2])
def test_neighbours_are_joined_as_a_slow_reference_does(grid: tuple[int, int], factor: int) -> None:
    features = torch.randn(2, *grid, 5)
    joined = neighbours_joined(features, factor)
    for picture in range(2):
        for row in range(joined.shape[1]):
            for column in range(joined.shape[2]):
                parts = []
                for y in range(row * factor, row * factor + factor):
                    for x in range(column * factor, column * factor + factor):
                        inside = y < grid[0] and x < grid[1]
                        parts.append(features[picture, y, x] if inside else torch.zeros(5))
                assert torch.equal(joined[picture, row, column], torch.cat(parts))
    # Nothing is lost: every patch is in some block.
    assert joined.shape[1] * factor >= grid[0] and joined.shape[2] * factor >= grid[1]
    assert (joined != 0).sum() == features.numel()


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("grid", [(4, 4), (3, 3), (3, 4)], ids=str)
def test_the_projector_fills_the_places_that_it_tells(grid: tuple[int, int], downsample: int) -> None:
    projector = VilaProjector(VilaProjectorConfig(downsample=downsample), 6, 10)
    assert projector(torch.randn(2, *grid, 6)).shape == (2, projector.places(grid), 10)
    assert projector(torch.zeros(0, *grid, 6)).shape == (0, projector.places(grid), 10)


def test_a_linear_projector_is_linear_and_an_mlp_is_not() -> None:
    one, other = torch.randn(2, 1, 3, 3, 6)
    for kind in ("linear", "mlp"):
        projector = VilaProjector(VilaProjectorConfig(kind=kind), 6, 10)
        summed = projector(one) + projector(other) - projector(torch.zeros_like(one))
        assert torch.allclose(projector(one + other), summed, atol=1e-5) == (kind == "linear")


def test_a_projector_that_is_not_offered_is_told() -> None:
    with pytest.raises(UserError, match="vila.projector.kind is 'resampler'; it is linear or mlp"):
        VilaProjectorConfig(kind="resampler")
    with pytest.raises(UserError, match="vila.projector.downsample is 3; it is 1 .* or 2"):
        VilaProjectorConfig(downsample=3)


# --- what reaches the logits ------------------------------------------------------------------------------------


def test_pictures_are_seen_through_the_penultimate_layer(model: VilaModel, clip: PretrainedClip) -> None:
    """As transformers' own model has it (LLaVA's and VILA's select_layer -2)."""
    pictures = [random_picture(seed) for seed in range(3)]
    with torch.no_grad():
        states = clip.vision(as_images(pictures), output_hidden_states=True).hidden_states
        expected = model.projector(states[-2].unflatten(1, (SIDE, SIDE)))
        seen = model.see(torch.from_numpy(np.stack(pictures)))
    assert len(states) == 4 and not torch.allclose(states[-1], states[-2])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


def logits_and_rows(model: VilaModel, batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Text logits [T, V] from given features [P, places, hidden], and the (row, place) of each, int64 [T, 2]."""
    sequence = batch.sequence
    hidden = model.read(sequence, model.embed_places(sequence, features.flatten(0, 1)))
    supervised = sequence.text_targets != -100
    return model.text_logits(hidden[supervised]), supervised.nonzero()


def test_text_logits_follow_the_own_picture_alone_by_gradient(
    model: VilaModel, rows: list[list[PictureDocument]]
) -> None:
    batch = picture_batch(rows, LENGTH)
    features = model.see(batch.pixels).detach().requires_grad_()
    logits, places = logits_and_rows(model, batch, features)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), logits)
    # Which picture is whose: pictures are numbered through the rows' documents.
    owner: dict[tuple[int, int], int | None] = {}
    for row, documents in enumerate(rows):
        for number, item in enumerate(documents, start=1):
            owner[row, number] = len([v for v in owner.values() if v is not None]) if item.pictures else None
    assert sorted(v for v in owner.values() if v is not None) == [0, 1, 2, 3]
    for (row, document), picture in owner.items():
        own = (places[:, 0] == row) & (batch.sequence.document_ids[places[:, 0], places[:, 1]] == document)
        for index in own.nonzero().flatten().tolist():
            output = (logits[index] * torch.randn(logits.shape[1])).sum()
            (gradient,) = torch.autograd.grad(output, features, retain_graph=True, allow_unused=True)
            reached = (gradient.norm(dim=-1) > 0).all(dim=1), (gradient.norm(dim=-1) > 0).any(dim=1)
            expected = torch.arange(4) == (-1 if picture is None else picture)
            assert torch.equal(reached[0], expected) and torch.equal(reached[1], expected)


def test_packed_documents_have_the_logits_that_they_have_alone(
    model: VilaModel, rows: list[list[PictureDocument]]
) -> None:
    with torch.no_grad():
        together = model.logits(picture_batch(rows, LENGTH))
        single = torch.cat([model.logits(alone(item)) for row in rows for item in row])
    torch.testing.assert_close(together, single, rtol=0, atol=1e-5)


def test_independent_questions_have_the_logits_of_documents_of_their_own(
    model: VilaModel, builder: DocumentBuilder
) -> None:
    places, shown = picture_places(0, model.places), (random_picture(5),)
    branches = PictureDocument(builder.questions(places, TURNS, independent=True), shown)
    with torch.no_grad():
        together = model.logits(alone(branches))
        apart = [
            model.logits(alone(PictureDocument(builder.questions(places, [turn], independent=False), shown)))
            for turn in TURNS
        ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_over_the_answers_tokens(model: VilaModel, builder: DocumentBuilder) -> None:
    """From the document itself, without the packing's targets."""
    document = PictureDocument(
        builder.questions(picture_places(0, model.places), TURNS[:1], independent=False), (random_picture(0),)
    )
    target = torch.tensor([*builder.ids(TURNS[0][1]), builder.vocabulary.end])
    with torch.no_grad():
        batch = alone(document)
        torch.testing.assert_close(loss_of(model, batch), F.cross_entropy(model.logits(batch), target))


@pytest.mark.parametrize("kind", ["text only", "nothing supervised"])
def test_a_batch_without_pictures_or_targets_has_a_loss_and_gradients(
    model: VilaModel, builder: DocumentBuilder, kind: str
) -> None:
    if kind == "text only":
        batch = picture_batch([[PictureDocument(builder.text(CAPTIONS[0]), ())]], 30)
    else:
        prompt = builder.question_prompt(picture_places(0, model.places), "why?")
        batch = picture_batch([[PictureDocument(prompt, (random_picture(0),))]], 30)
    loss = loss_of(model.train(), batch)
    assert (loss > 0) == (kind == "text only")
    loss.backward()
    for parameter in model.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all())


# --- answers ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def written_slowly(
    model: VilaModel, prompt: Document, picture: np.ndarray, end: int, tokens: int
) -> list[int]:
    """Greedy text: the whole sequence again for each token, no cache, no padding."""
    written: list[int] = []
    while len(written) < tokens:
        segments = (*prompt.segments, TextSegment(tuple(written), supervised=False))
        batch = alone(PictureDocument(Document(segments), (picture,)))
        token = int(model.text_logits(model.hidden_states(batch)[0, -1]).argmax())
        if token == end:
            break
        written.append(token)
    return written


def test_cached_answers_of_a_batch_equal_uncached_ones_one_by_one(
    model: VilaModel, tokenizer: PreTrainedTokenizerFast, builder: DocumentBuilder
) -> None:
    session = VilaSession(model, tokenizer)
    questions = ["why?", "is there a large blue star at the top left?", "how many objects?", "why?"]
    pictures = [random_picture(seed) for seed in range(4)]
    end = builder.vocabulary.end
    expected = [
        written_slowly(
            model, builder.question_prompt(picture_places(0, model.places), question), picture, end, 10
        )
        for question, picture in zip(questions, pictures, strict=True)
    ]
    prompts = [builder.question_prompt(picture_places(0, model.places), question) for question in questions]
    assert session._write(prompts, pictures, 10) == expected
    assert expected[0] != expected[3]  # the picture matters
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in expected]
    assert session.answer(pictures, questions, 10) == texts


def test_a_picture_of_another_size_is_brought_to_the_models(
    model: VilaModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    session = VilaSession(model, tokenizer)
    small = random_picture(0)
    doubled = small.repeat(2, axis=0).repeat(2, axis=1)
    wide = np.concatenate([np.zeros((48, 20, 3), np.uint8), doubled, np.zeros((48, 20, 3), np.uint8)], axis=1)
    answers = session.answer([doubled, wide], ["why?"] * 2, 10)
    assert answers[0] == answers[1]  # the centre square is what is seen


def test_a_question_that_leaves_no_room_is_told(model: VilaModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=f"positions and 10 are to follow, but .* holds {CONTEXT}"):
        VilaSession(model, tokenizer).answer([random_picture(0)], ["?" * CONTEXT], 10)


# --- training, saving -------------------------------------------------------------------------------------------


def train_steps(model: VilaModel, task: VilaTask, batch, steps: int, rate: float = 0.01) -> list[float]:
    parameters = [parameter for group in task.parameter_groups() for parameter in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    task.before_step([batch])
    losses = []
    for step in range(steps):
        loss = task.training_step(model, batch, step).losses["main"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("train_encoder", [False, True])
def test_training_moves_the_encoder_only_where_asked(
    clip: PretrainedClip, tokenizer: PreTrainedTokenizerFast, builder: DocumentBuilder, train_encoder: bool
) -> None:
    model = make_vila(clip, tokenizer, train_encoder=train_encoder)
    task = VilaTask(model, tokenizer)
    check_parameter_groups(model, task.parameter_groups())
    task.train_mode()
    assert model.llm.training and model.encoder.training == train_encoder
    before = state_of(model)
    train_steps(model, task, picture_batch([reading_forms(builder, model.places)[:2]], LENGTH), steps=1)
    after = state_of(model)
    names = {name for name, _ in model.named_parameters()}
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    encoder = {name for name in names if name.startswith("encoder.")}
    unread = {n for n in encoder if "layers.2." in n or "post_layernorm" in n or ".head." in n}
    assert moved >= names - encoder
    assert unread and not moved & unread
    still = encoder - unread - moved
    if train_encoder:
        # A key's bias shifts all scores of a query alike, which the softmax does not see.
        assert all(name.endswith("k_proj.bias") for name in still)
    else:
        assert still == encoder - unread
    assert any(name.startswith("encoder.") for name in task.trained_state()) == train_encoder
    saved = {name: value.clone() for name, value in task.trained_state().items()}
    other = make_vila(clip, tokenizer, train_encoder=train_encoder)
    VilaTask(other, tokenizer).load_trained_state(saved)
    assert_same_state(state_of(other), after)


def test_save_and_load_give_the_same_model(
    model: VilaModel, tokenizer: PreTrainedTokenizerFast, rows: list[list[PictureDocument]], tmp_path: Path
) -> None:
    VilaTask(model, tokenizer).save_model(tmp_path / "model")
    loaded = load_vila(tmp_path)
    assert not loaded.training
    assert_same_state(state_of(loaded), state_of(model))
    assert loaded.config.projector_config == model.config.projector_config
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    batch = picture_batch(rows, LENGTH)
    with torch.no_grad():
        assert torch.equal(loaded.logits(batch), model.logits(batch))
    asked = [random_picture(0)], ["how many objects?"], 10
    answers = VilaSession(model, tokenizer).answer(*asked)
    assert VilaSession.open(tmp_path).answer(*asked) == answers


def test_models_of_another_kind_are_told(
    model: VilaModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert not is_vila(tmp_path)
    with pytest.raises(UserError, match="no VILA in .*: expected a run directory of `make train-vila`"):
        load_vila(tmp_path)
    VilaTask(model, tokenizer).save_model(tmp_path / "model")
    assert is_vila(tmp_path) and is_vila(tmp_path / "model")
    with pytest.raises(UserError, match="holds a VILA, .* no codes"):
        Session.open(tmp_path)


def test_learns_answers_that_only_the_picture_tells(
    clip: PretrainedClip, tokenizer: PreTrainedTokenizerFast, builder: DocumentBuilder
) -> None:
    """The same question about four pictures has four answers: the loss falls, and the session gives them."""
    model = make_vila(clip, tokenizer, downsample=2)
    task, places = VilaTask(model, tokenizer), picture_places(0, 4)
    pictures = [random_picture(seed) for seed in range(4)]
    answers = ["one", "two", "three", "a grey ring"]
    documents = [
        PictureDocument(builder.questions(places, [("what?", answer)], independent=False), (picture,))
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    model.train()
    losses = train_steps(model, task, picture_batch([documents[:2], documents[2:]], 60), steps=60)
    assert losses[-1] < 0.05 * losses[0]
    assert VilaSession(model, tokenizer).answer(pictures, ["what?"] * 4, 10) == answers
