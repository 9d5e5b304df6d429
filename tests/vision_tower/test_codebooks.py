"""How codebooks begin, follow the data, and keep all of their codes in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tower import fill_codebooks
from torch import Tensor

from vilau_vision_tower.quantizer import QuantizerConfig, ResidualQuantizer
from vilau_vision_tower.quantizer.codebooks import COUNT_EPSILON
from vilau_vision_tower.quantizer.joint import JointBatch
from vilau_vision_tower.quantizer.kinds import residual_quantizer
from vilau_vision_tower.quantizer.start import fit

WIDTH, SIZE, DEPTH, DECAY = 3, 8, 3, 0.9


def training_quantizer(**settings: Any) -> ResidualQuantizer:
    config = QuantizerConfig(
        **{"codebook_size": SIZE, "depth": DEPTH, "ema_decay": DECAY, "restart_below": 0.0, **settings}
    )
    return residual_quantizer(config, WIDTH).train()


def state_of(quantizer: ResidualQuantizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def reference_step(state: dict[str, Tensor], codes: Tensor, z: Tensor, shared: bool) -> dict[str, Tensor]:
    """Codebooks, counts and sums after one step, by the equations; codes [N, D] of z [N, C]."""
    books, counts, sums = (state[name].double().clone() for name in ("codebooks", "counts", "sums"))
    n, m = torch.zeros_like(counts), torch.zeros_like(sums)
    for vector, row in zip(z.double(), codes, strict=True):
        residual = vector.clone()
        for depth, code in enumerate(row.tolist()):
            book = 0 if shared else depth
            n[book, code] += 1
            m[book, code] += residual
            residual -= state["codebooks"][book, code].double()
    counts, sums = DECAY * counts + (1 - DECAY) * n, DECAY * sums + (1 - DECAY) * m
    for book in range(len(books)):
        total = counts[book].sum()
        for code in range(SIZE):
            smoothed = (counts[book, code] + COUNT_EPSILON) / (total + SIZE * COUNT_EPSILON) * total
            books[book, code] = sums[book, code] / smoothed
    return {"codebooks": books.float(), "counts": counts.float(), "sums": sums.float()}


@pytest.mark.parametrize("shared", [False, True])
def test_codebooks_are_moving_averages(shared: bool) -> None:
    quantizer = training_quantizer(shared_codebook=shared)
    fill_codebooks(quantizer)
    for _ in range(4):
        before, z = state_of(quantizer), torch.randn(40, WIDTH)
        codes = quantizer(z.view(4, 10, WIDTH)).codes.view(40, DEPTH)
        for name, expected in reference_step(before, codes, z, shared).items():
            torch.testing.assert_close(state_of(quantizer)[name], expected, rtol=1e-4, atol=1e-5)


def test_output_is_that_of_the_codebooks_before_they_move() -> None:
    quantizer = training_quantizer()
    fill_codebooks(quantizer)
    z = torch.randn(40, WIDTH)
    expected = quantizer.eval()(z)
    output = quantizer.train()(z)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.z_q, expected.z_q)
    assert torch.equal(output.commitment, expected.commitment)


@pytest.mark.parametrize("started", [False, True])
def test_evaluation_touches_no_buffer(started: bool) -> None:
    quantizer = training_quantizer(restart_below=0.5).eval()
    if started:
        fill_codebooks(quantizer)
    before = state_of(quantizer)
    quantizer(torch.randn(40, WIDTH))
    for name, value in before.items():
        assert torch.equal(quantizer.state_dict()[name], value), name


@pytest.mark.parametrize("shared", [False, True])
def test_dead_codes_restart_and_live_ones_do_not(shared: bool) -> None:
    quantizer = training_quantizer(shared_codebook=shared, restart_below=0.1)
    least = 0.1 * 40 * (DEPTH if shared else 1) / SIZE  # a tenth of what a code gets on average
    fill_codebooks(quantizer)
    quantizer.counts.fill_(10.0)
    quantizer.sums.copy_(10 * quantizer.codebooks)
    # Far from everything, so that none of the batch is given to them, and hardly used of late.
    dead = [(book, code) for book in range(len(quantizer.codebooks)) for code in (0, 5)]
    for book, code in dead:
        quantizer.codebooks[book, code] = quantizer.sums[book, code] = 1e4
        quantizer.counts[book, code] = 0.1
    before, z = state_of(quantizer), torch.randn(40, WIDTH)
    codes = quantizer(z).codes
    after = state_of(quantizer)

    counts = reference_step(before, codes, z, shared)["counts"]
    for book, code in dead:
        counts[book, code] = least
        residuals = torch.cat(
            [
                z - quantizer_sum(before, codes[:, :depth], shared)
                for depth in (range(DEPTH) if shared else [book])
            ]
        )
        distance = (residuals - after["codebooks"][book, code]).norm(dim=-1).min()
        assert distance < 1e-3, "a restarted code is one of its own depth's residuals"
    torch.testing.assert_close(after["counts"], counts)
    live = torch.ones(counts.shape, dtype=torch.bool)
    live[tuple(zip(*dead, strict=True))] = False
    expected = DECAY * before["sums"] + (1 - DECAY) * batch_sums(before, codes, z, shared)
    torch.testing.assert_close(after["sums"][live], expected[live], rtol=1e-4, atol=1e-5)
    means = after["sums"] / after["counts"].unsqueeze(-1)
    torch.testing.assert_close(after["codebooks"], means, rtol=1e-3, atol=1e-4)


def quantizer_sum(state: dict[str, Tensor], codes: Tensor, shared: bool) -> Tensor:
    """The summed embeddings of codes [N, any depth]."""
    total = torch.zeros(len(codes), WIDTH)
    for depth in range(codes.shape[1]):
        total += state["codebooks"][0 if shared else depth][codes[:, depth]]
    return total


def batch_sums(state: dict[str, Tensor], codes: Tensor, z: Tensor, shared: bool) -> Tensor:
    sums = torch.zeros_like(state["sums"])
    for depth in range(DEPTH):
        residual = z - quantizer_sum(state, codes[:, :depth], shared)
        sums[0 if shared else depth].index_add_(0, codes[:, depth], residual)
    return sums


def test_restarted_codes_differ_from_each_other() -> None:
    quantizer = training_quantizer(depth=1, restart_below=0.1)
    fill_codebooks(quantizer)
    quantizer.codebooks.fill_(1e4)
    quantizer.counts.fill_(0.1)
    quantizer(torch.randn(40, WIDTH))
    restarted = quantizer.codebooks[0, 1:]  # the first one was nearest to all
    assert torch.pdist(restarted).min() > 1e-3
    assert restarted.abs().max() < 10


@pytest.mark.parametrize("size", [8, 64])
def test_what_counts_as_dead_goes_by_the_vectors_that_there_are_for_a_code(size: int) -> None:
    """Half of the codes have a fifth of the mean usage, whatever that is; restart_below lies on either side of it."""
    z = torch.randn(40, WIDTH)
    for share, restarts in ((0.1, 0), (0.3, size // 2)):
        quantizer = training_quantizer(depth=1, codebook_size=size, restart_below=share, ema_decay=1 - 1e-6)
        fill_codebooks(quantizer)
        quantizer.counts.fill_(40 / size)
        quantizer.counts[:, ::2] *= 0.2
        found = quantizer(z).restarts
        assert found is not None and found.item() == restarts
    assert quantizer.eval()(z).restarts is None


def test_a_start_leaves_no_code_to_restart_at_once() -> None:
    quantizer = training_quantizer(codebook_size=4, depth=2, restart_below=0.9, kmeans_iterations=2)
    z = torch.randn(400, WIDTH)  # 100 for each code
    assert quantizer(z).restarts == 0, "the batch that they start at"
    started = quantizer.codebooks.clone()
    assert quantizer(z).restarts < 8, "some lie below nine tenths of the mean, not all"
    assert (quantizer.codebooks - started).norm(dim=-1).min() < 0.5


def test_a_batch_that_is_too_small_for_the_codebook_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    quantizer = training_quantizer(codebook_size=1000, depth=2, ema_decay=0.99)
    for _ in range(2):
        quantizer(torch.randn(40, WIDTH))
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith(
        "a step has 40 vectors for the 1,000 codes of a codebook: each code's moving average"
    )
    assert "of about 4.0 vectors" in told
    caplog.clear()
    training_quantizer(codebook_size=8, depth=2, ema_decay=0.99)(torch.randn(40, WIDTH))
    assert not caplog.records


def slow_quantizer(**settings: Any) -> ResidualQuantizer:
    """Its codebooks stay where they begin, so that this can be seen."""
    return training_quantizer(ema_decay=1 - 1e-7, **settings)


def nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    return torch.cdist(vectors, rows, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1).values


@pytest.mark.parametrize("shared", [False, True])
def test_codebooks_start_at_the_first_batch(shared: bool) -> None:
    quantizer, z = slow_quantizer(shared_codebook=shared), torch.randn(40, WIDTH)
    assert not quantizer.started
    codes = quantizer(z).codes
    assert quantizer.started
    state = state_of(quantizer)
    for depth in range(DEPTH):
        # Of a shared codebook each depth begins a share of the codes, and the last depths' stay to the end.
        begin = -(-depth * SIZE // DEPTH) if shared else 0
        end = -(-(depth + 1) * SIZE // DEPTH) if shared else SIZE
        book = state["codebooks"][0 if shared else depth][begin:end]
        if depth == 0 or not shared:
            residual = z - quantizer_sum(state, codes[:, :depth], shared)
            assert nearest(book, residual).max() < 1e-3
        if depth == 0:
            assert torch.pdist(book).min() > 1e-3, "no vector is drawn twice"


def test_a_shared_codebook_starts_with_codes_for_every_depth() -> None:
    """Coarse ones from the vectors, finer and finer ones from what is left over."""
    quantizer, z = slow_quantizer(shared_codebook=True, codebook_size=48), torch.randn(600, WIDTH)
    quantizer(z)
    first, second, third = (part.mean() for part in quantizer.codebooks[0].norm(dim=-1).chunk(DEPTH))
    assert second < 0.8 * first
    assert third < 0.8 * second


def test_codebooks_start_once() -> None:
    quantizer = slow_quantizer()
    quantizer(torch.randn(40, WIDTH))
    before = quantizer.codebooks.clone()
    quantizer(5 + torch.randn(40, WIDTH))
    torch.testing.assert_close(quantizer.codebooks, before, rtol=1e-3, atol=1e-3)


def test_a_first_batch_smaller_than_the_codebook_will_do() -> None:
    quantizer, z = slow_quantizer(depth=1), torch.randn(3, WIDTH)
    output = quantizer(z)
    torch.testing.assert_close(output.z_q, z)
    assert nearest(quantizer.codebooks[0], z).max() < 1e-3


def test_codebooks_learn_the_data() -> None:
    """Vectors from as many places as there are pairs of codes: two depths come to tell them all apart."""
    quantizer = training_quantizer(codebook_size=16, depth=2, restart_below=0.03)
    places = 3 * torch.randn(64, WIDTH)
    errors = [quantizer(places[torch.randint(64, (256,))]).commitment.item() for _ in range(150)]
    quantizer.eval()
    assert (quantizer(places).z_q - places).square().mean() < 0.1 * places.square().mean()
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])


@pytest.mark.parametrize("shared", [False, True])
def test_deeper_codebooks_do_not_start_at_zero(shared: bool) -> None:
    """Where every vector of the first batch could be a code, deeper ones begin at what new vectors leave over."""
    quantizer, z = slow_quantizer(shared_codebook=shared, codebook_size=64), torch.randn(60, WIDTH)
    quantizer(z)
    assert quantizer.codebooks.norm(dim=-1).min() > 1e-3
    if not shared:
        first, second, _ = quantizer.codebooks
        residuals = z - first[torch.cdist(z, first).argmin(dim=-1)]
        assert nearest(second, residuals[residuals.norm(dim=-1) > 1e-3]).max() < 1e-3


def test_kmeans_is_lloyds_algorithm() -> None:
    z, share = torch.randn(200, WIDTH), torch.randperm(200)[:120]
    codes = z[share[:5]].double()
    for steps in range(4):
        torch.testing.assert_close(fit(JointBatch(z), share, 5, steps), codes.float())
        nearest = torch.cdist(z[share].double(), codes).argmin(dim=-1)
        codes = torch.stack([z[share][nearest == code].double().mean(dim=0) for code in range(5)])


def test_a_code_without_vectors_stays_through_kmeans() -> None:
    """Two vectors, drawn twice each: ties go to one of the two equal codes."""
    z = torch.randn(2, WIDTH)
    codes = fit(JointBatch(z), torch.tensor([1, 0]), 4, 3)
    assert torch.equal(codes, z[[1, 0, 1, 0]])


@pytest.mark.parametrize("shared", [False, True])
def test_a_kmeans_start_quantises_better(shared: bool) -> None:
    places = 3 * torch.randn(32, WIDTH)
    z = places[torch.randint(32, (600,))] + 0.1 * torch.randn(600, WIDTH)
    errors = []
    for iterations in (0, 10):
        quantizer = slow_quantizer(shared_codebook=shared, codebook_size=30, kmeans_iterations=iterations)
        errors.append(quantizer(z).commitment.item())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("shared", [False, True])
def test_learned_codebooks_stay_but_for_dead_codes(shared: bool) -> None:
    """Only the optimiser moves them, and restarts."""
    quantizer = training_quantizer(shared_codebook=shared, codebook_update="gradient", restart_below=0.1)
    fill_codebooks(quantizer)
    quantizer.counts.fill_(10.0)
    with torch.no_grad():
        quantizer.codebooks[:, 3] = 1e4
    quantizer.counts[:, 3] = 0.1
    before, z = state_of(quantizer), torch.randn(40, WIDTH)
    codes = quantizer(z).codes
    after = state_of(quantizer)
    live = torch.arange(SIZE) != 3
    assert torch.equal(after["codebooks"][:, live], before["codebooks"][:, live])
    for book, codebook in enumerate(after["codebooks"]):
        depths = range(DEPTH) if shared else [book]
        residuals = torch.cat([z - quantizer_sum(before, codes[:, :depth], shared) for depth in depths])
        assert nearest(codebook[3:4], residuals).item() < 1e-5
    least = 0.1 * 40 * (DEPTH if shared else 1) / SIZE
    torch.testing.assert_close(after["counts"][:, 3], torch.full((len(after["counts"]),), least))


@pytest.mark.parametrize("shared", [False, True])
def test_codebooks_learn_the_data_by_gradient(shared: bool) -> None:
    quantizer = training_quantizer(
        codebook_size=16, depth=2, restart_below=0.03, codebook_update="gradient", shared_codebook=shared
    )
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    places = 3 * torch.randn(64, WIDTH)
    errors = []
    for _ in range(150):
        output = quantizer(places[torch.randint(64, (256,))])
        optimizer.zero_grad()
        output.codebook.backward()
        optimizer.step()
        errors.append(output.codebook.item())
    quantizer.eval()
    assert (quantizer(places).z_q - places).square().mean() < 0.1 * places.square().mean()
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])


def test_few_dead_codes_restart_at_different_vectors_of_a_small_batch() -> None:
    quantizer = training_quantizer(depth=1, codebook_size=64, restart_below=0.9)
    fill_codebooks(quantizer)
    quantizer.counts.fill_(10.0)
    dead = torch.arange(0, 64, 16)  # four of them, and four vectors
    quantizer.codebooks[0, dead] = 1e4
    quantizer.counts[0, dead] = 0.01
    z = torch.randn(4, WIDTH)
    quantizer(z)
    restarted = quantizer.codebooks[0, dead]
    assert torch.cdist(z, restarted).min(dim=-1).values.max() < 1e-3, "each vector has its code"


def test_codebooks_loaded_into_a_fresh_quantiser_do_not_start_again() -> None:
    trained = slow_quantizer()
    trained(torch.randn(40, WIDTH))
    fresh = slow_quantizer()
    fresh.load_state_dict(trained.state_dict())
    fresh(5 + torch.randn(40, WIDTH))
    torch.testing.assert_close(fresh.codebooks, trained.codebooks, rtol=1e-3, atol=1e-3)


def test_a_state_from_before_the_start_starts_again() -> None:
    quantizer = slow_quantizer()
    empty = state_of(quantizer)
    quantizer(torch.randn(40, WIDTH))
    quantizer.load_state_dict(empty)
    z = 100 + torch.randn(40, WIDTH)
    quantizer(z)
    assert nearest(quantizer.codebooks[0], z).max() < 1e-2
