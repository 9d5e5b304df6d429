"""The LM as a training task: the frozen tower, what is saved and loaded, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import (
    IMAGE_SIZE,
    D,
    all_forms,
    assert_same_state,
    make_model,
    random_codes,
    state_of,
)

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import UnifiedLM, load_unified_lm
from vilau_unified_lm.packing import pack
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary

LENGTH = 100


@pytest.fixture
def rows(builder: DocumentBuilder) -> list[list[Document]]:
    documents = all_forms(builder)
    return [
        [documents[0], documents[1]],
        [documents[2], documents[3], documents[6]],
        [documents[5]],
        documents[4:5],
    ]


# --- the frozen tower -------------------------------------------------------------------------------------------


def train_steps(
    model: UnifiedLM, task: UnifiedTask, documents: list[Document], steps: int, rate: float
) -> float:
    """Adam on one packed batch; returns the last loss."""
    parameters = [parameter for group in task.parameter_groups() for parameter in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    batch = pack([[document] for document in documents], max(map(len, documents)), D)
    loss = torch.zeros(())
    for step in range(steps):
        task.before_step([batch])
        loss = task.training_step(model, batch, step).losses["main"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.fixture
def task(model: UnifiedLM, builder: DocumentBuilder) -> UnifiedTask:
    return UnifiedTask(model, builder.tokenizer)


def test_the_tower_stays_as_it_is(model: UnifiedLM, task: UnifiedTask, builder: DocumentBuilder) -> None:
    """No gradients, no moving codebooks, evaluation mode whatever the mode around it."""
    before = state_of(model)
    task.train_mode()
    assert model.llm.training and model.depth.training and model.projector.training
    assert not any(module.training for module in model.vision_tower.modules())
    model.image_tokenizer.encode(
        torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    )  # would move codebooks in training mode
    train_steps(model, task, all_forms(builder), steps=1, rate=0.01)
    after = state_of(model)
    tower = [name for name in after if name.startswith("vision_tower.")]
    assert_same_state({name: before[name] for name in tower}, {name: after[name] for name in tower})
    assert all(parameter.grad is None for parameter in model.vision_tower.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not any(name.startswith("vision_tower.") for name in trained)
    assert [name for name in trained if torch.equal(before[name], after[name])] == []


def test_trained_state_leaves_the_tower_out_and_restores_the_rest(
    model: UnifiedLM, task: UnifiedTask, vocabulary: Vocabulary, builder: DocumentBuilder
) -> None:
    saved = {name: value.clone() for name, value in task.trained_state().items()}
    assert saved and not any(name.startswith("vision_tower.") for name in saved)
    before = state_of(model)
    train_steps(model, task, all_forms(builder), steps=1, rate=0.01)
    task.load_trained_state(saved)
    assert_same_state(state_of(model), before)
    # Into a model that was built anew around the same tower.
    other = make_model(vocabulary, grid_positions=model.config.grid_positions)
    other.vision_tower.load_state_dict(model.vision_tower.state_dict())
    UnifiedTask(other, builder.tokenizer).load_trained_state(saved)
    assert_same_state(state_of(other), before)


def test_parameter_groups_hold_everything_trained_once(model: UnifiedLM, task: UnifiedTask) -> None:
    from vilau_common.training.task import check_parameter_groups

    groups = task.parameter_groups()
    check_parameter_groups(model, groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for group in groups if group.matrices for p in group.parameters}
    # Muon is for hidden matrices: embeddings, heads and what enters stay with AdamW.
    assert all(name.startswith(("llm.model.layers.", "depth.blocks.")) for name in matrices)
    assert len(matrices) == 2 * 7 + 2 * 4


def test_throughput_counts_places_that_are_not_padding(task: UnifiedTask, rows: list[list[Document]]) -> None:
    assert task.batch_size(pack(rows, LENGTH, D)) == sum(len(document) for row in rows for document in row)


# --- saving and loading -----------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_model(
    model: UnifiedLM, task: UnifiedTask, rows: list[list[Document]], builder: DocumentBuilder, tmp_path: Path
) -> None:
    """Weights, the tower's buffers and what is not saved at all; logits, pictures, codes and drawings."""
    task.save_model(tmp_path / "model")
    loaded = load_unified_lm(tmp_path)
    assert not loaded.training
    assert_same_state(state_of(loaded), state_of(model))
    assert loaded.config.depth_config == model.config.depth_config
    batch = pack(rows, LENGTH, D)
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    drawing = ([builder.drawing_prompt("a star")], builder.drawing_prompt(""), Sampling(), [3])
    results = []
    for candidate in (model, loaded):
        with torch.no_grad():
            logits = candidate.logits(batch)
        tower = candidate.image_tokenizer
        codes = tower.encode(images)
        results.append(
            (
                logits.text,
                logits.visual,
                codes,
                tower.decode(codes),
                Engine(candidate).draw(*drawing),
            )
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not any(parameter.requires_grad for parameter in loaded.vision_tower.parameters())


def test_a_loaded_model_trains_like_the_saved_one(
    vocabulary: Vocabulary, builder: DocumentBuilder, tmp_path: Path
) -> None:
    model = make_model(vocabulary)
    UnifiedTask(model, builder.tokenizer).save_model(tmp_path)
    losses = []
    for candidate in (model, load_unified_lm(tmp_path)):
        torch.manual_seed(0)
        candidate.train()
        task = UnifiedTask(candidate, builder.tokenizer)
        losses.append(train_steps(candidate, task, all_forms(builder)[:3], steps=2, rate=0.01))
    assert losses[0] == losses[1]


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unified LM in .*: expected a run directory of `make train-lm`"):
        load_unified_lm(tmp_path)


# --- learning ---------------------------------------------------------------------------------------------------


def test_learns_pictures_and_answers_by_heart_and_gives_them_back(
    vocabulary: Vocabulary, builder: DocumentBuilder
) -> None:
    """Training and generation agree on every place: what was trained comes out of the engine, code for code."""
    model = make_model(vocabulary).train()
    captions = ["a red circle", "two green triangles", ""]
    codes = [random_codes(seed) for seed in range(3)]
    asked = [("how many?", "two"), ("a star?", "no")]
    documents = [
        *(builder.text_to_image(caption, picture) for caption, picture in zip(captions, codes, strict=True)),
        builder.questions(codes[0], asked, independent=True),
        builder.questions(codes[1], [("how many?", "four")], independent=False),
    ]
    model.depth.config.dropout = 0.0
    for block in model.depth.blocks:
        block.dropout.p = 0.0
    loss = train_steps(model, UnifiedTask(model, builder.tokenizer), documents, steps=60, rate=0.01)
    assert loss < 0.1
    engine = Engine(model)
    greedy = Sampling(temperature=0, guidance=1)
    prompts = [builder.drawing_prompt(caption) for caption in captions]
    drawn = engine.draw(prompts, builder.drawing_prompt(""), greedy, [0, 1, 2])
    assert [picture.tolist() for picture in drawn] == [picture.tolist() for picture in codes]
    questions = [
        builder.question_prompt(codes[0], "how many?"),
        builder.question_prompt(codes[1], "how many?"),
    ]
    answers = engine.write(questions, vocabulary.end, max_tokens=10, sampling=greedy, seeds=[0, 1])
    assert [builder.tokenizer.decode(answer).strip() for answer in answers] == ["two", "four"]
