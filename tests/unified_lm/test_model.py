"""The unified LM: causality by gradient, packed = alone, the loss, the frozen tower, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_lm import (
    D,
    IMAGE_SIZE,
    POSITIONS,
    K,
    all_forms,
    as_tensor,
    assert_same_state,
    make_model,
    random_codes,
    state_of,
)
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.losses import unified_loss
from vilau_unified_lm.model import UnifiedLM, UnifiedLMOutput, load_unified_lm
from vilau_unified_lm.packing import MixedSequence, pack, packed_attention_mask
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.vocabulary import Vocabulary

LENGTH = 100


@pytest.fixture
def rows(builder: DocumentBuilder) -> list[list[Document]]:
    documents = all_forms(builder)
    return [[documents[0], documents[1]], [documents[2], documents[3], documents[6]], [documents[5]], documents[4:5]]


def embedded(model: UnifiedLM, batch: MixedSequence) -> Tensor:
    """The backbone's inputs, float [B, L, hidden], as a leaf of the graph."""
    features = model.image_tokenizer.embed_codes(batch.codes).sum(dim=-2)
    return model.embed(batch, features).detach().requires_grad_()


def test_hidden_states_are_causal_by_gradient(model: UnifiedLM, rows: list[list[Document]]) -> None:
    """The hidden state at t follows the inputs up to t of its own document, and nothing else."""
    batch = pack(rows[:2], LENGTH, D)
    inputs = embedded(model, batch)
    hidden = model.backbone(inputs, packed_attention_mask(batch.document_ids), batch.position_ids)
    ids = batch.document_ids
    for row in range(2):
        for place in range(0, int((ids[row] > 0).sum()), 3):
            output = (hidden[row, place] * torch.randn(hidden.shape[-1])).sum()
            (gradient,) = torch.autograd.grad(output, inputs, retain_graph=True)
            matters = gradient.norm(dim=-1) > 0
            expected = torch.zeros_like(matters)
            expected[row] = (ids[row] == ids[row, place]) & (torch.arange(LENGTH) <= place)
            assert torch.equal(matters, expected)


def test_visual_logits_are_causal_in_the_codes(vocabulary: Vocabulary, builder: DocumentBuilder) -> None:
    """From codes to logits, on both axes at once: position t, depth d follows the codes before (t, d) only."""
    model = make_model(vocabulary)
    codes = random_codes(0).reshape(POSITIONS, D)

    def logits_of(codes) -> Tensor:
        document = builder.text_to_image("a red circle", codes)
        with torch.no_grad():
            return model(pack([[document]], len(document), D)).visual_logits

    before = logits_of(codes)
    assert before.shape == (POSITIONS, D, K)
    for position in (0, 4, POSITIONS - 1):
        for level in range(D):
            changed = codes.copy()
            changed[position, level] = (changed[position, level] + 1) % K
            differs = (logits_of(changed) != before).any(dim=-1).flatten()
            first = position * D + level + 1
            assert not differs[:first].any()
            assert differs[first:].all()


def alone(model: UnifiedLM, document: Document) -> UnifiedLMOutput:
    with torch.no_grad():
        return model(pack([[document]], len(document), D))


def test_packed_documents_get_what_they_get_alone(model: UnifiedLM, rows: list[list[Document]]) -> None:
    """Logits of every target, and the sums of the losses, whatever stands beside or behind in the row."""
    with torch.no_grad():
        packed = model(pack(rows, LENGTH, D))
    single = [alone(model, document) for row in rows for document in row]
    text_logits = torch.cat([output.text_logits for output in single])
    visual_logits = torch.cat([output.visual_logits for output in single])
    torch.testing.assert_close(packed.text_logits, text_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(packed.visual_logits, visual_logits, rtol=0, atol=1e-5)
    for name, count in (("text", "text_logits"), ("visual", "visual_logits")):
        sums = sum(getattr(output.loss, name) * len(getattr(output, count)) for output in single)
        total = getattr(packed.loss, name) * len(getattr(packed, count))
        torch.testing.assert_close(total, sums, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_packed_batch_are_the_sum_of_those_alone(
    vocabulary: Vocabulary, builder: DocumentBuilder
) -> None:
    """Two drawings of equally many tokens: the batch's mean is the mean of theirs."""
    model = make_model(vocabulary)
    documents = [builder.text_to_image("", random_codes(seed)) for seed in range(2)]
    gradients = []
    for rows in ([documents], [documents[:1]], [documents[1:]]):
        model.zero_grad()
        model(pack(rows, 40, D)).loss.total.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, together in gradients[0].items():
        expected = (gradients[1][name] + gradients[2][name]) / 2
        torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-5)


def test_padding_never_matters(model: UnifiedLM, rows: list[list[Document]]) -> None:
    narrow, wide = pack(rows, 95, D), pack(rows, 110, D)
    wide.token_ids[wide.document_ids == 0] = 7
    wide.position_ids[wide.document_ids == 0] = 3
    with torch.no_grad():
        one, other = model(narrow), model(wide)
    torch.testing.assert_close(one.text_logits, other.text_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.visual_logits, other.visual_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.loss.total, other.loss.total, rtol=1e-5, atol=0)


def test_what_is_not_visual_ignores_the_codes_and_what_is_reads_its_own(
    model: UnifiedLM, builder: DocumentBuilder
) -> None:
    """Each visual position gets the projection of its own codes' sum, in order."""
    codes = random_codes(0)
    batch = pack([[builder.text("a star")], [builder.text_to_image("a red circle", codes)]], 30, D)
    inputs = embedded(model, batch)
    tokens = model.llm.get_input_embeddings()(batch.token_ids)
    assert torch.equal(inputs[~batch.visual_mask], tokens[~batch.visual_mask])
    summed = model.vision_tower.embed_codes(as_tensor(codes)).sum(dim=1)
    projected = model.projector.mlp(summed)
    if model.config.grid_positions:
        rows = model.projector.rows.repeat_interleave(3, dim=0)
        projected = projected + rows + model.projector.columns.repeat(3, 1)
    torch.testing.assert_close(inputs[batch.visual_mask], projected)


def test_image_start_predicts_the_first_position_and_the_last_predicts_image_end(
    vocabulary: Vocabulary, builder: DocumentBuilder
) -> None:
    model = make_model(vocabulary)
    codes = random_codes(0)
    document = builder.text_to_image("a red circle", codes)
    batch = pack([[document]], len(document), D)
    start = int((batch.token_ids[0] == vocabulary.image_start).nonzero())
    with torch.no_grad():
        output = model(batch)
        mask = packed_attention_mask(batch.document_ids)
        hidden = model.backbone(embedded(model, batch), mask, batch.position_ids)[0]
        embeddings = model.vision_tower.embed_codes(as_tensor(codes))
        first = model.depth(hidden[start : start + 1], embeddings[:1])
        after_last = model.llm.lm_head(hidden[start + POSITIONS])
    torch.testing.assert_close(output.visual_logits[:1], first, rtol=0, atol=1e-5)
    # The targets of this document's text are <image_end> and </s>, in this order.
    torch.testing.assert_close(output.text_logits[0], after_last, rtol=0, atol=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------


def test_loss_is_mean_over_text_plus_mean_over_visual_tokens() -> None:
    text_logits, text_targets = torch.randn(7, 20), torch.randint(20, (7,))
    visual_logits, codes = torch.randn(5, D, K), torch.randint(K, (5, D))
    text = [-F.log_softmax(text_logits[i], dim=-1)[text_targets[i]] for i in range(7)]
    visual = [[-F.log_softmax(visual_logits[i, d], dim=-1)[codes[i, d]] for d in range(D)] for i in range(5)]
    loss = unified_loss(text_logits, text_targets, visual_logits, codes)
    torch.testing.assert_close(loss.text, sum(text) / 7)
    torch.testing.assert_close(loss.visual, sum(sum(row) for row in visual) / (5 * D))
    torch.testing.assert_close(loss.total, loss.text + loss.visual)
    torch.testing.assert_close(loss.per_depth, torch.stack([sum(row[d] for row in visual) / 5 for d in range(D)]))


def test_targets_of_the_loss_are_the_next_tokens(vocabulary: Vocabulary, builder: DocumentBuilder) -> None:
    """From the documents themselves, without the packing's targets."""
    model = make_model(vocabulary)
    codes = random_codes(0)
    document = builder.text_to_image("a red circle", codes)
    output = alone(model, document)
    text = F.cross_entropy(output.text_logits, torch.tensor([vocabulary.image_end, vocabulary.end]))
    visual = F.cross_entropy(output.visual_logits.flatten(0, 1), as_tensor(codes).flatten())
    torch.testing.assert_close(output.loss.text, text)
    torch.testing.assert_close(output.loss.visual, visual)


@pytest.mark.parametrize("kind", ["text only", "nothing supervised"])
def test_a_batch_without_some_targets_has_a_loss_and_gradients(
    vocabulary: Vocabulary, builder: DocumentBuilder, kind: str
) -> None:
    model = make_model(vocabulary).train()
    document = builder.text("two stars") if kind == "text only" else builder.drawing_prompt("two stars")
    loss = model(pack([[document]], 30, D)).loss
    assert loss.visual == 0
    assert (loss.per_depth == 0).all()
    assert (loss.text > 0) == (kind == "text only")
    loss.total.backward()
    for parameter in model.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all())


# --- the frozen tower -------------------------------------------------------------------------------------------


def train_steps(model: UnifiedLM, task: UnifiedTask, documents: list[Document], steps: int, rate: float) -> float:
    """Adam on one packed batch; returns the last loss."""
    parameters = [parameter for group in task.parameter_groups() for parameter in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    batch = pack([[document] for document in documents], max(map(len, documents)), D)
    loss = torch.zeros(())
    for step in range(steps):
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
    model.image_tokenizer.encode(torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE))  # would move codebooks in training mode
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
            output = candidate(batch)
        tower = candidate.image_tokenizer
        codes = tower.encode(images)
        results.append(
            (output.text_logits, output.visual_logits, codes, tower.decode(codes), Engine(candidate).draw(*drawing))
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
        builder.questions(codes[0], asked),
        builder.questions(codes[1], [("how many?", "four")]),
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
