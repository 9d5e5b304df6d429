"""The unified LM: causality by gradient, packed = alone, the loss."""

from __future__ import annotations

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
    make_model,
    random_codes,
)
from torch import Tensor

from vilau_unified_lm.document import Document, DocumentBuilder
from vilau_unified_lm.losses import unified_loss
from vilau_unified_lm.model import UnifiedLM, UnifiedLMOutput
from vilau_unified_lm.packing import MixedSequence, pack, packed_attention_mask
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


def test_independent_questions_get_what_they_get_alone(model: UnifiedLM, builder: DocumentBuilder) -> None:
    """One picture serves them all, and none sees another; in a conversation the later ones see the earlier."""
    codes = random_codes(0)
    turns = [(turn["question"], turn["answer"]) for turn in QUESTIONS]
    together = alone(model, builder.questions(codes, turns, independent=True))
    single = [alone(model, builder.questions(codes, [turn], independent=False)) for turn in turns]
    expected = torch.cat([output.text_logits for output in single])
    torch.testing.assert_close(together.text_logits, expected, rtol=0, atol=1e-5)
    conversation = alone(model, builder.questions(codes, turns, independent=False))
    first = len(single[0].text_logits)
    torch.testing.assert_close(conversation.text_logits[:first], expected[:first], rtol=0, atol=1e-5)
    assert ((conversation.text_logits - expected)[first:].abs().amax(dim=-1) > 1e-3).all()


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
        mask = mask_of(batch)
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
    torch.testing.assert_close(
        loss.per_depth, torch.stack([sum(row[d] for row in visual) / 5 for d in range(D)])
    )


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
