"""From logits to one token, against the distribution written out in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vilau_common.errors import UserError
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.generation.sampling import Sampling, guided, sample, uniform_draws

PLAIN = Sampling(top_k=None, top_p=1.0)
DRAWS = 20_000


def sweep(logits: Tensor, sampling: Sampling) -> Tensor:
    """Shares float [K] of the tokens over evenly spaced uniform numbers; logits float [K]."""
    uniform = (torch.arange(DRAWS) + 0.5) / DRAWS
    tokens = sample(logits.expand(DRAWS, -1), uniform, sampling)
    return tokens.bincount(minlength=len(logits)) / DRAWS


def reference(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution to draw from, float [K], in plain steps."""
    probabilities = (logits.double() / sampling.temperature).softmax(dim=-1)
    order = probabilities.argsort(descending=True).tolist()
    kept = order[: sampling.top_k]
    shares = (probabilities[kept] / probabilities[kept].sum()).tolist()
    nucleus, mass = [], 0.0
    for token, share in zip(kept, shares, strict=True):
        if mass >= sampling.top_p:
            break
        nucleus.append(token)
        mass += share
    wanted = torch.zeros(len(logits), dtype=torch.float64)
    wanted[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return wanted.float()


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        Sampling(temperature=0.5, top_k=None, top_p=1.0),
        Sampling(temperature=3.0, top_k=None, top_p=1.0),
        Sampling(top_k=4, top_p=1.0),
        Sampling(top_k=None, top_p=0.7),
        Sampling(temperature=1.5, top_k=9, top_p=0.8),
        Sampling(top_k=900, top_p=0.96),
    ],
    ids=str,
)
def test_shares_are_those_of_the_filtered_softmax(sampling: Sampling) -> None:
    """Evenly spaced draws give each token its share, to one draw; filtered ones never come."""
    logits = torch.randn(17) * 2
    shares, wanted = sweep(logits, sampling), reference(logits, sampling)
    torch.testing.assert_close(shares, wanted, rtol=0, atol=2 / DRAWS)
    assert (shares[wanted == 0] == 0).all()


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for top_p, kept in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1e-6, 1)):
        assert (sweep(logits, Sampling(top_k=None, top_p=top_p)) > 0).sum() == kept


def test_no_temperature_and_top_1_take_the_most_likely() -> None:
    logits, uniform = torch.randn(500, 30), torch.rand(500)
    assert torch.equal(sample(logits, uniform, GREEDY), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, uniform, Sampling(top_k=1)), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, uniform, Sampling(top_k=None, top_p=1e-6)), logits.argmax(dim=-1))


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("sampling", [PLAIN, Sampling(), Sampling(top_k=5, top_p=0.5)], ids=str)
def test_the_ends_of_the_interval_give_the_ends_of_the_kept_tokens(
    extreme: float, sampling: Sampling
) -> None:
    """Rounding in a sum over a large codebook must not let the draw fall off its end."""
    logits = torch.randn(8, 16384)
    tokens = sample(logits, torch.full((8,), extreme), sampling)
    for row, token in enumerate(tokens):
        wanted = reference(logits[row], sampling)
        kept = wanted[wanted > 0]
        if extreme == 0:
            assert wanted[token] == kept.max()
        else:  # in float32 the least likely of many merge with those before
            assert 0 < wanted[token] < kept.mean() * (1.5 if len(kept) > 5 else 5)


def test_forbidden_tokens_never_come() -> None:
    logits = torch.randn(6)
    logits[[1, 4]] = -torch.inf
    shares = sweep(logits, PLAIN)
    assert (shares[[1, 4]] == 0).all()
    assert (sample(logits.expand(1, -1), torch.tensor([1 - 2**-24]), PLAIN) != 4).all()


def test_low_precision_logits_are_drawn_from_in_full_precision() -> None:
    logits = torch.randn(17).bfloat16()
    torch.testing.assert_close(sweep(logits, PLAIN), reference(logits, PLAIN), rtol=0, atol=2 / DRAWS)


def test_rows_are_drawn_independently() -> None:
    logits, uniform = torch.randn(40, 30), torch.rand(40)
    together = sample(logits, uniform, Sampling())
    one_by_one = [sample(logits[i : i + 1], uniform[i : i + 1], Sampling()) for i in range(40)]
    assert torch.equal(together, torch.cat(one_by_one))


def test_draws_with_seeded_numbers_follow_the_softmax() -> None:
    """Chi-square over many seeds, each with its own first number."""
    logits = torch.randn(8)
    count = 4000
    tokens = sample(
        logits.expand(count, -1), uniform_draws(range(count), 1, torch.device("cpu"))[:, 0], PLAIN
    )
    expected = logits.softmax(dim=-1) * count
    chi_square = ((tokens.bincount(minlength=8) - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 7 degrees of freedom: once in a thousand


def test_uniform_draws_belong_to_their_seed() -> None:
    device = torch.device("cpu")
    draws = uniform_draws([5, 9, 5], 40, device)
    assert draws.shape == (3, 40)
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert torch.equal(uniform_draws([9], 40, device)[0], draws[1])
    # More numbers begin with the same ones: a longer answer begins as the shorter one.
    assert torch.equal(uniform_draws([5], 7, device)[0], draws[0, :7])
    assert ((draws >= 0) & (draws < 1)).all()


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniform_draws([1, 2], 10, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_guidance_moves_away_from_the_unconditional() -> None:
    conditional, unconditional = torch.randn(3, 9), torch.randn(3, 9)
    both = torch.cat([conditional, unconditional])
    torch.testing.assert_close(guided(both, 1.0), conditional)
    torch.testing.assert_close(guided(both, 0.0), unconditional)
    torch.testing.assert_close(guided(both, 3.0), conditional + 2 * (conditional - unconditional))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0"),
        ({"top_k": 0}, "top-k is 0; keep at least 1 token"),
        ({"top_p": 0.0}, "top-p is 0.0; it must lie above 0 and at most at 1"),
        ({"top_p": 1.1}, "top-p is 1.1; it must lie above 0 and at most at 1"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be 0 or above"),
        ({"guidance": float("nan")}, "guidance is nan; it must be 0 or above"),
        ({"guidance": float("inf")}, "guidance is inf; it must be 0 or above"),
        ({"temperature": float("inf")}, "temperature is inf; it must be 0"),
        ({"depth_temperatures": [1.0, -2.0]}, "temperature is -2.0; it must be 0"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_in_one_sentence(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampling(**settings)


@pytest.mark.parametrize("temperature", [1e-6, 1e-38])
def test_a_temperature_of_almost_nothing_is_greedy(temperature: float) -> None:
    logits = torch.randn(20, 30) * 5
    tokens = sample(logits, torch.rand(20), Sampling(temperature=temperature))
    assert torch.equal(tokens, logits.argmax(dim=-1))


def test_temperatures_by_depth() -> None:
    plain = Sampling(temperature=0.7)
    assert plain.by_depth(3) == [plain] * 3
    by_depth = Sampling(top_k=5, depth_temperatures=[0.0, 0.5, 2.0])
    assert by_depth.by_depth(3) == [Sampling(top_k=5, temperature=value) for value in (0.0, 0.5, 2.0)]
    assert (
        len({by_depth, Sampling(top_k=5, depth_temperatures=(0.0, 0.5, 2.0))}) == 1
    )  # graphs are kept by it
    with pytest.raises(UserError, match="3 depth temperatures, but a visual position has 4 codes"):
        by_depth.by_depth(4)
