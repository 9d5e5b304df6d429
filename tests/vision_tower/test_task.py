"""The two training objectives, what they train, and what they keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_tower import IMAGE_SIZE, BatchLoader, adversarial_weights, batch_of, tiny_task, tiny_tower
from torch import nn
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.images import to_tensor
from vilau_common.training import OptimizerConfig, TrainingConfig
from vilau_common.training.state import TrainingState
from vilau_common.training.task import check_parameter_groups
from vilau_vision_tower.clip import TextEncoder, load_clip
from vilau_vision_tower.losses import ContrastiveConfig, PerceptualConfig, psnr
from vilau_vision_tower.task import ClipTask, TowerTask
from vilau_vision_tower.tower import VisionTower, load_tower

WEIGHTS = {"l1": 0.5, "l2": 2.0, "contrastive": 3.0, "commitment": 0.7, "codebook": 0.3}


@pytest.fixture
def task(tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> TowerTask:
    task = tiny_task(tower, clip, tokenizer, **WEIGHTS)
    task.train_mode()
    return task


@pytest.fixture
def judged(tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> TowerTask:
    """With a discriminator from step 2 on, and a perceptual distance."""
    task = tiny_task(tower, clip, tokenizer, **WEIGHTS, **adversarial_weights(start_step=2))
    task.train_mode()
    return task


@pytest.mark.parametrize("negatives", [0, 2])
def test_the_loss_is_the_weighted_sum_of_its_terms(task: TowerTask, negatives: int) -> None:
    batch = batch_of(5, negatives)
    task.network.eval()
    output = task.training_step(task.network, batch, 0)
    tower = task.tower(batch.images)
    difference = tower.reconstruction - batch.images
    texts = [task.text_encoder(ids) for ids in (batch.caption_ids, batch.negative_ids) if len(ids)]
    logits = tower.embedding @ torch.cat(texts).T * 10.0
    target = torch.arange(5)
    terms = {
        "l1": difference.abs().mean(),
        "l2": difference.square().mean(),
        "contrastive": (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :5].T, target)) / 2,
        "commitment": tower.commitment,
        "codebook": tower.codebook,
    }
    for name, term in terms.items():
        torch.testing.assert_close(output.metrics[f"loss/{name}"], term)
    assert set(output.metrics) == {f"loss/{name}" for name in terms}
    torch.testing.assert_close(
        output.losses["main"], sum(WEIGHTS[name] * term for name, term in terms.items())
    )


def test_a_weight_of_zero_runs_no_network(
    tower: VisionTower, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    perceptual = PerceptualConfig(kind="clip", weight=0.0)
    task = tiny_task(tower, clip, tokenizer, contrastive=0.0, perceptual=perceptual)
    task.text_encoder.register_forward_hook(lambda *_: pytest.fail("the text encoder ran"))
    assert task.network.perceptual is None
    config = TrainingConfig(steps=2, optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1))
    state = TrainingState(task, BatchLoader(4, negatives=1), config, seed=0)
    head = {name: value.clone() for name, value in tower.state_dict().items() if "encoder.model.head" in name}
    before = tower.decoder.output.weight.clone()
    state.advance()
    state.close()
    assert not torch.equal(tower.decoder.output.weight, before)
    assert head and all(torch.equal(tower.state_dict()[name], value) for name, value in head.items())
    assert task.may_skip_parameters, "several processes must know"


def test_perceptual_and_adversarial_terms_add_to_it(judged: TowerTask) -> None:
    batch, network = batch_of(5), judged.network
    network.eval()
    before, after = (judged.training_step(network, batch, step) for step in (1, 2))
    assert before.losses.keys() == {"main"}
    assert set(after.metrics) - set(before.metrics) == {"loss/adversarial", "adversarial_scale"}
    reconstruction = judged.tower(batch.images).reconstruction
    perceptual = network.perceptual(reconstruction, batch.images)
    torch.testing.assert_close(after.metrics["loss/perceptual"], perceptual)
    plain = sum(WEIGHTS[name] * before.metrics[f"loss/{name}"] for name in WEIGHTS) + 0.6 * perceptual
    torch.testing.assert_close(before.losses["main"], plain)
    logits = network.adversarial.discriminator(reconstruction)
    torch.testing.assert_close(after.metrics["loss/adversarial"], -logits.mean())
    pixels = WEIGHTS["l1"] * (reconstruction - batch.images).abs().mean() + 0.6 * perceptual
    pixels = pixels + WEIGHTS["l2"] * (reconstruction - batch.images).square().mean()
    weight = judged.tower.decoder.output.weight
    norms = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (pixels, -logits.mean())
    ]
    scale = after.metrics["adversarial_scale"]
    torch.testing.assert_close(scale, norms[0] / (norms[1] + 1e-4), rtol=1e-4, atol=0)
    torch.testing.assert_close(after.losses["main"], plain - 0.4 * scale * logits.mean())
    torch.testing.assert_close(
        after.losses["discriminator"],
        network.adversarial.of_discriminator(batch.images, reconstruction),
    )


def test_tower_and_discriminator_learn_from_their_own_loss_only(judged: TowerTask) -> None:
    groups = judged.parameter_groups()
    check_parameter_groups(judged.network, groups)
    sides = {
        name: [weight for group in groups if group.optimizer == name for weight in group.parameters]
        for name in ("main", "discriminator")
    }
    for name, other in (("main", "discriminator"), ("discriminator", "main")):
        judged.network.zero_grad()
        judged.training_step(judged.network, batch_of(5), 2).losses[name].backward()
        assert all(weight.grad is not None for weight in sides[name])
        assert all(weight.grad is None for weight in sides[other])
    assert all(weight.grad is None for weight in judged.network.perceptual.parameters())


def test_the_discriminator_starts_late_with_a_learning_rate_of_its_own(judged: TowerTask) -> None:
    discriminator = judged.network.adversarial.discriminator
    runs: list[int] = []
    discriminator.register_forward_hook(lambda *_: runs.append(state.step))
    config = TrainingConfig(
        steps=3,
        gradient_clip=None,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        other_optimizers={"discriminator": OptimizerConfig(learning_rate=2e-5, betas=(0.5, 0.9))},
    )
    state = TrainingState(judged, BatchLoader(6), config, seed=0)
    start = [weight.detach().clone() for weight in discriminator.parameters()]
    for _ in range(2):
        state.advance()
        assert all(map(torch.equal, start, discriminator.parameters()))
    assert runs == []
    state.advance()
    state.close()
    assert set(runs) == {2}
    # Adam's first step is the learning rate (the third of three: cosine(2 / 3) of it), whatever the gradient.
    change = torch.stack(
        [(a - b).abs().max() for a, b in zip(start, discriminator.parameters(), strict=True)]
    )
    assert change.max().item() == pytest.approx(2e-5 * 0.25, rel=1e-2)


def test_all_but_the_text_encoder_is_trained(task: TowerTask) -> None:
    groups = task.parameter_groups()
    check_parameter_groups(task.network, groups)
    trained = {id(weight) for group in groups for weight in group.parameters}
    expected = [*task.tower.parameters(), *task.network.contrastive.parameters()]
    assert trained == {id(weight) for weight in expected}
    task.training_step(task.network, batch_of(5, 1), 0).losses["main"].backward()
    assert all(weight.grad is not None for weight in expected)
    assert all(weight.grad is None for weight in task.text_encoder.parameters())


def test_muon_may_take_linear_weights_only(task: TowerTask) -> None:
    matrices, other = task.parameter_groups()
    linear = {id(module.weight) for module in task.tower.modules() if isinstance(module, nn.Linear)}
    assert matrices.matrices
    assert not other.matrices
    assert {id(weight) for weight in matrices.parameters} <= linear
    assert not linear & {id(weight) for weight in other.parameters}
    assert other.weight_decay == 0.0


def test_the_text_encoder_stays_in_evaluation_mode(task: TowerTask) -> None:
    task.network.eval()
    task.train_mode()
    assert task.tower.training
    assert task.tower.quantizer.training
    assert not any(module.training for module in task.text_encoder.modules())


def test_the_perceptual_distance_stays_in_evaluation_mode(judged: TowerTask) -> None:
    judged.network.train()
    judged.train_mode()
    assert judged.network.adversarial.training
    assert not any(module.training for module in judged.network.perceptual.modules())


def test_checkpoints_leave_the_text_encoder_out(
    task: TowerTask, clip: SiglipModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    state = {name: value.clone() for name, value in task.trained_state().items()}
    assert not any(name.startswith("text_encoder") for name in state)
    assert {"tower.quantizer.codebooks", "tower.quantizer.started", "contrastive.log_scale"} <= state.keys()
    other = tiny_task(tiny_tower(clip), clip, tokenizer)
    with torch.no_grad():
        for weight in other.tower.parameters():
            weight.zero_()
    texts = {name: value.clone() for name, value in other.text_encoder.state_dict().items()}
    other.load_trained_state(state)
    for name, value in other.trained_state().items():
        assert torch.equal(value, state[name]), name
    for name, value in other.text_encoder.state_dict().items():
        assert torch.equal(value, texts[name]), name


def test_checkpoints_keep_the_discriminator_and_leave_the_perceptual_distance_out(judged: TowerTask) -> None:
    state = {name: value.clone() for name, value in judged.trained_state().items()}
    assert "adversarial.discriminator.output.weight" in state
    assert not any(name.startswith("perceptual") for name in state)
    frozen = {name: value.clone() for name, value in judged.network.perceptual.state_dict().items()}
    judged.load_trained_state({name: torch.zeros_like(value) for name, value in state.items()})
    assert all(not value.any() for value in judged.trained_state().values())
    for name, value in judged.network.perceptual.state_dict().items():
        assert torch.equal(value, frozen[name]), name


def test_a_checkpoint_with_a_weight_missing_is_refused(task: TowerTask) -> None:
    state = dict(task.trained_state())
    del state["tower.quantizer.codebooks"]
    with pytest.raises(RuntimeError, match=r"tower\.quantizer\.codebooks"):
        task.load_trained_state(state)


def test_evaluation_measures_what_the_codes_keep(task: TowerTask) -> None:
    task.network.eval()
    images = to_tensor(task.test_images)
    decoded = task.tower.decode(task.tower.encode(images))
    assert task.evaluate() == {"psnr": pytest.approx(psnr(images, decoded).mean().item(), rel=1e-5)}


def test_evaluation_and_samples_take_no_more_pictures_at_once_than_a_step(
    task: TowerTask, tmp_path: Path
) -> None:
    task.network.eval()
    seen: list[int] = []
    task.tower.decoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    task.evaluate()
    task.save_samples(tmp_path, 0)
    assert seen == [3, 1, 3, 1]


def test_samples_are_one_sheet(task: TowerTask, tmp_path: Path) -> None:
    task.network.eval()
    task.save_samples(tmp_path, 0)
    (file,) = tmp_path.iterdir()
    sheet = np.asarray(Image.open(file))
    assert (sheet != 255).any()
    assert sheet.shape[1] > sheet.shape[0], "originals above reconstructions, four beside each other"


def test_the_saved_model_is_the_trained_one(task: TowerTask, tmp_path: Path) -> None:
    for step in range(2):
        task.training_step(task.network, batch_of(5), step)
    task.network.eval()
    task.save_model(tmp_path)
    batch, captions = batch_of(5), ["a red circle", "a cross"]
    tower, texts = load_tower(tmp_path), TextEncoder.from_pretrained(tmp_path / "text_encoder")
    assert torch.equal(tower.encode(batch.images), task.tower.encode(batch.images))
    torch.testing.assert_close(texts.embed(captions), task.text_encoder.embed(captions))


def test_a_tower_learns_a_batch(task: TowerTask) -> None:
    batch = batch_of(8)
    batch.images = batch.images[:, :, :1, :1].expand_as(batch.images)  # plain colours: these it can learn
    optimizer = torch.optim.Adam([w for group in task.parameter_groups() for w in group.parameters], lr=1e-2)
    history = []
    for step in range(60):
        output = task.training_step(task.network, batch, step)
        optimizer.zero_grad()
        output.losses["main"].backward()
        optimizer.step()
        history.append(output.metrics)
    for name in ("loss/l2", "loss/contrastive"):
        assert history[-1][name] < 0.5 * history[0][name], name


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_clip_trains_both_its_sides(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    task = ClipTask(clip, tokenizer, ContrastiveConfig(kind=kind, scale=5.0, bias=-1.0))
    groups = task.parameter_groups()
    check_parameter_groups(task.network, groups)
    task.training_step(task.network, batch_of(5, 1), 0).losses["main"].backward()
    assert all(weight.grad is not None for group in groups for weight in group.parameters)


@pytest.mark.parametrize("part", ["clip", "tower"])
def test_steps_keep_the_scale_within_its_bounds(
    clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, part: str
) -> None:
    tower = tiny_task(tiny_tower(clip), clip, tokenizer)
    task = ClipTask(clip, tokenizer, ContrastiveConfig()) if part == "clip" else tower
    with torch.no_grad():
        task.network.contrastive.log_scale.fill_(9.0)
    task.after_step(1)
    assert task.network.contrastive.log_scale.exp().item() == pytest.approx(100.0)


def test_clip_sees_captions_and_negatives(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> None:
    task, batch = ClipTask(clip, tokenizer, ContrastiveConfig(scale=5.0)), batch_of(5, 2)
    images = F.normalize(clip.get_image_features(batch.images).pooler_output, dim=-1)
    texts = [
        F.normalize(clip.get_text_features(ids).pooler_output, dim=-1)
        for ids in (batch.caption_ids, batch.negative_ids)
    ]
    ids = torch.cat([batch.caption_ids, batch.negative_ids])
    output = task.training_step(task.network, batch, 0)
    torch.testing.assert_close(output.losses["main"], task.network.contrastive(images, *texts, ids))


def test_the_saved_clip_is_the_trained_one(
    clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Its own logits included: they are the ones that the loss was taken of."""
    task = ClipTask(clip, tokenizer, ContrastiveConfig(kind="sigmoid", scale=5.0, bias=-1.0))
    task.save_model(tmp_path)
    loaded, _ = load_clip(tmp_path)
    batch = batch_of(3)
    logits = loaded(input_ids=batch.caption_ids, pixel_values=batch.images).logits_per_image
    signs = 2 * torch.eye(3) - 1
    loss = -F.logsigmoid(signs * logits).sum(dim=-1).mean()
    torch.testing.assert_close(task.training_step(task.network, batch, 0).losses["main"], loss)
    assert batch.images.shape[-1] == IMAGE_SIZE
