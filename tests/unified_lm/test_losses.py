"""Cross-entropies in chunks, and the objective of a joint batch that comes in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_lm import D, K, all_forms, gradients_of, make_model, objective
from torch import Tensor, nn

from vilau_common.errors import UserError
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.losses import (
    NORMALIZATIONS,
    LossConfig,
    StepTargets,
    TokenLosses,
    chunked_cross_entropy,
    random_share,
    unified_loss,
)
from vilau_unified_lm.packing import pack
from vilau_unified_lm.vocabulary import Vocabulary

N, WIDTH, CLASSES = 23, 8, 50


def head_of(kind: str) -> nn.Module:
    """The two that there are: the LM's, and the depth transformer's."""
    return (
        nn.Linear(WIDTH, CLASSES, bias=False)
        if kind == "linear"
        else nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))
    )


def losses_and_gradients(head: nn.Module, rows: int, count: int = N) -> list[Tensor]:
    """Losses, and gradients of states and head, for a loss that weighs tokens differently; `rows` to a chunk."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(count, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    weights = torch.randn(count, generator=generator)
    head.zero_grad()
    losses = chunked_cross_entropy(head, states, targets, CLASSES, rows * CLASSES * 4)
    (losses * weights).sum().backward()
    assert losses.dtype == torch.float32 and states.grad is not None
    return [losses.detach(), states.grad, *gradients_of(head).values()]


@pytest.mark.parametrize("kind", ["linear", "normed"])
@pytest.mark.parametrize("rows", [1, 5, N - 1])
def test_chunks_give_what_the_plain_one_gives(kind: str, rows: int) -> None:
    head = head_of(kind)
    for chunked, plain in zip(losses_and_gradients(head, rows), losses_and_gradients(head, N), strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-6)


def test_less_memory_than_one_row_takes_one_row_at_a_time() -> None:
    losses = chunked_cross_entropy(
        head_of("linear"), torch.randn(3, WIDTH), torch.zeros(3).long(), CLASSES, 1
    )
    assert losses.shape == (3,)


def test_chunks_under_autocast() -> None:
    """bfloat16 logits, float32 losses; near what float32 gives, and nearer still to the plain one."""
    head = head_of("normed")
    exact = losses_and_gradients(head, N)
    with torch.autocast("cpu", torch.bfloat16):
        plain, chunked = losses_and_gradients(head, N), losses_and_gradients(head, 5)
    for values in zip(chunked, plain, exact, strict=True):
        one, other, true = values
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
        torch.testing.assert_close(one, true, rtol=0.05, atol=0.1)


def test_no_more_logits_than_a_chunk_are_ever_kept() -> None:
    """Neither does the head see more rows at once, nor does the graph hold what has the logits' size."""
    linear, seen, kept = nn.Linear(WIDTH, CLASSES), [], []
    linear.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    states = torch.randn(N, WIDTH, requires_grad=True)

    def pack_hook(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        losses = chunked_cross_entropy(
            linear, states, torch.zeros(N, dtype=torch.long), CLASSES, 5 * CLASSES * 4
        )
    assert seen == [5, 5, 5, 5, 3]
    assert not any(CLASSES in shape and WIDTH not in shape for shape in kept)
    losses.sum().backward()
    assert sorted(seen[5:]) == [3, 5, 5, 5, 5]


@pytest.mark.parametrize("rows", [5, 100])
def test_no_tokens_give_zero_gradients(rows: int) -> None:
    for value in losses_and_gradients(head_of("normed"), rows, count=0):
        assert (value == 0).all()


# --- the objective ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_objective_against_a_slow_one(normalization: str) -> None:
    text_logits, text_targets = torch.randn(7, 20), torch.randint(20, (7,))
    visual_logits, codes = torch.randn(5, D, K), torch.randint(K, (5, D))
    text = [-F.log_softmax(text_logits[i], dim=-1)[text_targets[i]] for i in range(7)]
    visual = [[-F.log_softmax(visual_logits[i, d], dim=-1)[codes[i, d]] for d in range(D)] for i in range(5)]
    tokens = [token for row in visual for token in row]
    losses = TokenLosses(torch.stack(text), torch.stack(tokens).view(5, D), positions=5)
    loss = unified_loss(losses, StepTargets(torch.tensor(7.0), torch.tensor(5.0), parts=1), normalization)
    torch.testing.assert_close(loss.text, sum(text) / 7)
    torch.testing.assert_close(loss.visual, sum(tokens) / (5 * D))
    expected = loss.text + loss.visual if normalization == "modality" else sum(text + tokens) / (7 + 5 * D)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(
        loss.per_depth, torch.stack([sum(row[d] for row in visual) / 5 for d in range(D)])
    )
    assert loss.total.dtype == torch.float32


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_parts_of_a_batch_make_the_loss_and_gradients_of_the_whole(
    vocabulary: Vocabulary, builder: DocumentBuilder, normalization: str
) -> None:
    """However differently text and pictures are spread: one part has no picture, and one nothing supervised."""
    model = make_model(vocabulary)
    documents = all_forms(builder)
    rows = [[documents[2]], [documents[0], documents[1]], [builder.drawing_prompt("a star")], documents[3:5]]
    config = LossConfig(normalization=normalization)
    whole = objective(model, pack(rows, 90, D), config)
    whole.total.backward()
    expected = gradients_of(model)
    batches = [pack([row], 90, D) for row in rows]
    step = StepTargets.of(batches, torch.device("cpu"))
    model.zero_grad()
    parts = [unified_loss(model(batch), step, normalization) for batch in batches]
    (sum(part.total for part in parts) / len(parts)).backward()
    for name, value in vars(whole).items():
        mean = torch.stack([getattr(part, name) for part in parts]).mean(dim=0)
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("count", "share", "drawn"), [(10, 0.3, 3), (10, 0.01, 1), (0, 0.5, 0), (7, 1.0, 7)])
def test_a_share_is_drawn_without_repetition_from_the_runs_random_numbers(
    count: int, share: float, drawn: int
) -> None:
    torch.manual_seed(3)
    first, second = (random_share(count, share, torch.device("cpu")).tolist() for _ in range(2))
    assert len(set(first)) == len(first) == len(second) == drawn
    assert all(0 <= index < count for index in first)
    torch.manual_seed(3)
    assert random_share(count, share, torch.device("cpu")).tolist() == first
    assert drawn != 3 or first != second


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LossConfig(normalization="tokens"), "loss.normalization is 'tokens'; it is one of modality, token"),
        (LossConfig(depth_share=0.0), "loss.depth_share is 0.0"),
        (LossConfig(depth_share=1.5), "loss.depth_share is 1.5"),
        (LossConfig(logits_mib=0), "loss.logits_mib is 0"),
    ],
)
def test_values_out_of_range_are_refused(config: LossConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config.validate()
