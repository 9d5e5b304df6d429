"""The depth transformer: causal by gradient, and the same with its cache as without."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import D, K

from vilau_common.errors import UserError
from vilau_unified_lm.config import DepthConfig
from vilau_unified_lm.depth import DepthTransformer

N, HIDDEN, FEATURES = 5, 32, 8


def make_depth(depth: int = D) -> DepthTransformer:
    config = DepthConfig(width=24, layers=2, heads=3, dropout=0.5)
    # The large standard deviation makes every input matter.
    return DepthTransformer(config, HIDDEN, FEATURES, K, depth, std=0.3).eval()


def test_causality_by_gradient() -> None:
    """The logits of depth d follow the hidden state and the embeddings before d, of their own position only."""
    depth = make_depth()
    hidden = torch.randn(N, HIDDEN, requires_grad=True)
    embeddings = torch.randn(N, D, FEATURES, requires_grad=True)
    logits = depth.logits(depth(hidden, embeddings))
    assert logits.shape == (N, D, K)
    for place in (0, N - 1):
        for level in range(D):
            output = (logits[place, level] * torch.randn(K)).sum()
            by_hidden, by_embedding = torch.autograd.grad(output, (hidden, embeddings), retain_graph=True)
            hidden_matters, embedding_matters = by_hidden.norm(dim=-1) > 0, by_embedding.norm(dim=-1) > 0
            assert hidden_matters.nonzero().flatten().tolist() == [place]
            assert embedding_matters.nonzero().tolist() == [[place, before] for before in range(level)]


def test_reads_cumulative_sums_of_embeddings() -> None:
    """Depth d sees the sums of the first 1, 2, .. d embeddings: the last of them is the feature so far."""
    depth = make_depth()
    hidden, embeddings = torch.randn(N, HIDDEN), torch.randn(N, D, FEATURES)
    seen = []
    hook = depth.from_features.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    depth(hidden, embeddings)
    hook.remove()
    for level in range(1, D):
        torch.testing.assert_close(seen[0][:, level - 1], embeddings[:, :level].sum(dim=1))


@pytest.mark.parametrize("levels", [1, 2, D])
def test_steps_with_cache_equal_teacher_forcing(levels: int) -> None:
    depth = make_depth(levels)
    hidden, embeddings = torch.randn(N, HIDDEN), torch.randn(N, levels, FEATURES)
    expected = depth.logits(depth(hidden, embeddings))
    cache = depth.start_cache(N, hidden)
    source = hidden
    for level in range(levels):
        logits = depth.step(source, cache)
        torch.testing.assert_close(logits, expected[:, level], rtol=0, atol=1e-5)
        source = embeddings[:, : level + 1].sum(dim=1)


def test_a_step_never_reads_the_part_of_the_cache_that_is_not_filled() -> None:
    depth = make_depth()
    hidden = torch.randn(N, HIDDEN)
    cache = depth.start_cache(N, hidden)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    assert depth.step(hidden, cache).isfinite().all()
    assert depth.step(torch.randn(N, FEATURES), cache).isfinite().all()


def test_no_positions_give_no_logits_and_no_error() -> None:
    """A batch of text alone; the gradient of an empty sum is zero, not missing."""
    depth = make_depth().train()
    logits = depth.logits(depth(torch.randn(0, HIDDEN), torch.randn(0, D, FEATURES)))
    assert logits.shape == (0, D, K)
    logits.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in depth.parameters())


def test_dropout_acts_in_training_only() -> None:
    depth = make_depth()
    hidden, embeddings = torch.randn(N, HIDDEN), torch.randn(N, D, FEATURES)
    assert torch.equal(depth(hidden, embeddings), depth(hidden, embeddings))
    depth.train()
    assert not torch.equal(depth(hidden, embeddings), depth(hidden, embeddings))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DepthConfig(heads=0), "depth.heads is 0; it must be 1 or more"),
        (DepthConfig(layers=0), "depth.layers is 0"),
        (DepthConfig(width=-40), "depth.width is -40"),
        (DepthConfig(width=30, heads=4), "depth.width 30 is not a multiple of depth.heads 4"),
        (DepthConfig(dropout=1.0), "depth.dropout is 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: DepthConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DepthTransformer(config, HIDDEN, FEATURES, K, D, std=0.02)
