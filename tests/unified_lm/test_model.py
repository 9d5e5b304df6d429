"""The unified LM: causality by gradient, packed = alone, the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from tiny_lm import (
    POSITIONS,
    QUESTIONS,
    D,
    K,
    all_forms,
    as_tensor,
    gradients_of,
    make_model,
    objective,
    random_codes,
)
from torch import Tensor

from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.losses import MIB, NORMALIZATIONS, LossConfig
from vilau_unified_lm.model import UnifiedLM, UnifiedLogits
from vilau_unified_lm.packing import IGNORE, MixedSequence, pack, packed_attention_mask
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


def embedded(model: UnifiedLM, batch: MixedSequence) -> Tensor:
    """The backbone's inputs, float [B, L, hidden], as a leaf of the graph."""
    features = model.image_tokenizer.embed_codes(batch.codes).sum(dim=-2)
    return model.embed(batch, features).detach().requires_grad_()


def mask_of(batch: MixedSequence) -> Tensor:
    return packed_attention_mask(batch.document_ids, batch.branch_ids)


def test_hidden_states_are_causal_by_gradient(model: UnifiedLM, rows: list[list[Document]]) -> None:
    """The hidden state at t follows the inputs up to t of its own document, and nothing else."""
    batch = pack(rows[:2], LENGTH, D)
    inputs = embedded(model, batch)
    hidden = model.backbone(inputs, mask_of(batch), batch.position_ids)
    ids, branches = batch.document_ids, batch.branch_ids
    for row in range(2):
        for place in range(0, int((ids[row] > 0).sum()), 3):
            output = (hidden[row, place] * torch.randn(hidden.shape[-1])).sum()
            (gradient,) = torch.autograd.grad(output, inputs, retain_graph=True)
            matters = gradient.norm(dim=-1) > 0
            expected = torch.zeros_like(matters)
            open_to = (branches[row] == 0) | (branches[row] == branches[row, place])
            expected[row] = (ids[row] == ids[row, place]) & (torch.arange(LENGTH) <= place) & open_to
            assert torch.equal(matters, expected)


def test_visual_logits_are_causal_in_the_codes(vocabulary: Vocabulary, builder: DocumentBuilder) -> None:
    """From codes to logits, on both axes at once: position t, depth d follows the codes before (t, d) only."""
    model = make_model(vocabulary)
    codes = random_codes(0).reshape(POSITIONS, D)

    def logits_of(codes) -> Tensor:
        document = builder.text_to_image("a red circle", codes)
        with torch.no_grad():
            return model.logits(pack([[document]], len(document), D)).visual

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


def alone(model: UnifiedLM, document: Document) -> UnifiedLogits:
    with torch.no_grad():
        return model.logits(pack([[document]], len(document), D))


def test_losses_of_a_document_reach_it_alone_by_gradient(
    vocabulary: Vocabulary, rows: list[list[Document]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through both heads: what the losses of one document's targets follow is all of it that stands before them."""
    model = make_model(vocabulary)
    batch = pack(rows[:2], LENGTH, D)
    inputs = embedded(model, batch)
    monkeypatch.setattr(model, "embed", lambda *_: inputs)
    for row, documents in enumerate(rows[:2]):
        for number in range(1, len(documents) + 1):
            mine = torch.zeros_like(batch.visual_mask)
            mine[row] = batch.document_ids[row] == number
            losses = model(
                replace(
                    batch,
                    text_targets=batch.text_targets.where(mine, IGNORE),
                    visual_targets=batch.visual_targets.where(mine, IGNORE),
                )
            )
            (gradient,) = torch.autograd.grad(losses.text.sum() + losses.visual.sum(), inputs)
            matters = gradient.norm(dim=-1) > 0
            # The last place of a document, or of a branch, predicts nothing and is seen by nothing.
            branch_ends = batch.branch_ids != batch.branch_ids.roll(-1, 1)
            ends = (batch.document_ids != batch.document_ids.roll(-1, 1)) | (
                branch_ends & (batch.branch_ids > 0)
            )
            assert torch.equal(matters, mine & ~ends)


def test_packed_documents_get_what_they_get_alone(model: UnifiedLM, rows: list[list[Document]]) -> None:
    """Logits and losses of every target, whatever stands beside or behind in the row."""
    packed = pack(rows, LENGTH, D)
    documents = [document for row in rows for document in row]
    with torch.no_grad():
        logits, losses = model.logits(packed), model(packed)
        single_losses = [model(pack([[document]], len(document), D)) for document in documents]
    single = [alone(model, document) for document in documents]
    for name in ("text", "visual"):
        expected = torch.cat([getattr(output, name) for output in single])
        torch.testing.assert_close(getattr(logits, name), expected, rtol=0, atol=1e-5)
        expected = torch.cat([getattr(output, name) for output in single_losses])
        torch.testing.assert_close(getattr(losses, name), expected, rtol=0, atol=1e-5)


def test_independent_questions_get_what_they_get_alone(model: UnifiedLM, builder: DocumentBuilder) -> None:
    """One picture serves them all, and none sees another; in a conversation the later ones see the earlier."""
    codes = random_codes(0)
    turns = [(turn["question"], turn["answer"]) for turn in QUESTIONS]
    together = alone(model, builder.questions(codes, turns, independent=True))
    single = [alone(model, builder.questions(codes, [turn], independent=False)) for turn in turns]
    expected = torch.cat([output.text for output in single])
    torch.testing.assert_close(together.text, expected, rtol=0, atol=1e-5)
    conversation = alone(model, builder.questions(codes, turns, independent=False))
    first = len(single[0].text)
    torch.testing.assert_close(conversation.text[:first], expected[:first], rtol=0, atol=1e-5)
    assert ((conversation.text - expected)[first:].abs().amax(dim=-1) > 1e-3).all()


def test_gradients_of_a_packed_batch_are_the_sum_of_those_alone(
    vocabulary: Vocabulary, builder: DocumentBuilder
) -> None:
    """Two drawings of equally many tokens: the batch's mean is the mean of theirs."""
    model = make_model(vocabulary)
    documents = [builder.text_to_image("", random_codes(seed)) for seed in range(2)]
    gradients = []
    for rows in ([documents], [documents[:1]], [documents[1:]]):
        model.zero_grad()
        objective(model, pack(rows, 40, D)).total.backward()
        gradients.append(gradients_of(model))
    for name, together in gradients[0].items():
        expected = (gradients[1][name] + gradients[2][name]) / 2
        torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-5)


def test_padding_never_matters(model: UnifiedLM, rows: list[list[Document]]) -> None:
    narrow, wide = pack(rows, 95, D), pack(rows, 110, D)
    wide.token_ids[wide.document_ids == 0] = 7
    wide.position_ids[wide.document_ids == 0] = 3
    with torch.no_grad():
        one, other = model.logits(narrow), model.logits(wide)
        losses = [objective(model, batch).total for batch in (narrow, wide)]
    torch.testing.assert_close(one.text, other.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.visual, other.visual, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


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
        output = model.logits(batch)
        mask = mask_of(batch)
        hidden = model.backbone(embedded(model, batch), mask, batch.position_ids)[0]
        embeddings = model.vision_tower.embed_codes(as_tensor(codes))
        first = model.depth.logits(model.depth(hidden[start : start + 1], embeddings[:1]))
        after_last = model.llm.lm_head(hidden[start + POSITIONS])
    torch.testing.assert_close(output.visual[:1], first, rtol=0, atol=1e-5)
    # The targets of this document's text are <image_end> and </s>, in this order.
    torch.testing.assert_close(output.text[0], after_last, rtol=0, atol=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------


def test_targets_of_the_loss_are_the_next_tokens(vocabulary: Vocabulary, builder: DocumentBuilder) -> None:
    """From the documents themselves, without the packing's targets."""
    model = make_model(vocabulary)
    codes = random_codes(0)
    document = builder.text_to_image("a red circle", codes)
    logits = alone(model, document)
    with torch.no_grad():
        loss = objective(model, pack([[document]], len(document), D))
    text = F.cross_entropy(logits.text, torch.tensor([vocabulary.image_end, vocabulary.end]))
    visual = F.cross_entropy(logits.visual.flatten(0, 1), as_tensor(codes).flatten())
    torch.testing.assert_close(loss.text, text)
    torch.testing.assert_close(loss.visual, visual)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["text only", "nothing supervised"])
def test_a_batch_without_some_targets_has_a_loss_and_gradients(
    vocabulary: Vocabulary, builder: DocumentBuilder, kind: str, normalization: str
) -> None:
    model = make_model(vocabulary).train()
    document = builder.text("two stars") if kind == "text only" else builder.drawing_prompt("two stars")
    config = LossConfig(normalization=normalization, depth_share=0.5)
    loss = objective(model, pack([[document]], 30, D), config)
    assert loss.visual == 0
    assert (loss.per_depth == 0).all()
    assert (loss.text > 0) == (kind == "text only")
    assert loss.total == loss.text
    loss.total.backward()
    for parameter in model.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_chunks_change_neither_losses_nor_gradients(
    model: UnifiedLM,
    rows: list[list[Document]],
    normalization: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every weight, heads and what stands before them, when a chunk holds two rows of text logits."""
    batch = pack(rows, LENGTH, D)
    results = []
    for budget in (MIB, 4 * 2 * model.config.backbone_config.vocab_size):
        monkeypatch.setattr("vilau_unified_lm.model.MIB", budget)
        model.zero_grad()
        loss = objective(model, batch, LossConfig(normalization=normalization, logits_mib=1))
        loss.total.backward()
        results.append((loss, gradients_of(model)))
    (plain, expected), (chunked, gradients) = results
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(chunked, name), value, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_the_depth_transformer_runs_on_a_random_share_that_is_unbiased(
    model: UnifiedLM, builder: DocumentBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over every pair that can be drawn is the whole: loss, depths and gradients."""
    batch = pack([[builder.text_to_image("a star", random_codes(seed))] for seed in range(2)], 40, D)
    count = 2 * POSITIONS
    config = LossConfig(depth_share=2 / count)
    model.zero_grad()
    whole = objective(model, batch)
    whole.total.backward()
    expected = gradients_of(model)
    seen = []
    hook = model.depth.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pairs = list(combinations(range(count), 2))
    mean = {name: torch.zeros_like(value) for name, value in vars(whole).items()}
    model.zero_grad()
    for pair in pairs:
        monkeypatch.setattr("vilau_unified_lm.model.random_share", lambda *_, pair=pair: torch.tensor(pair))
        loss = objective(model, batch, config)
        (loss.total / len(pairs)).backward()
        for name, value in vars(loss).items():
            mean[name] += value.detach() / len(pairs)
    hook.remove()
    assert set(seen) == {2}
    for name, value in vars(whole).items():
        torch.testing.assert_close(mean[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
