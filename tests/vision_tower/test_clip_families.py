"""Every family of CLIP against its own library: features at the quantised layer, image and text embeddings."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_clips import CAPTIONS, SIZE, SavedClip, save_clip, save_open_clip, save_siglip
from tiny_tower import DECODER, fill_codebooks
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vilau_common.run import isolated_random
from vilau_vision_tower.clip import PretrainedClip, TextEncoder, caption_ids, load_pretrained
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.decoder import ConvDecoderConfig
from vilau_vision_tower.losses import ClipDistance
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.tower import VisionTower, load_tower

FAMILIES = [
    "siglip",
    "clip",
    "tiny-ViT",
    "tiny-ViT-quickgelu",
    "tiny-timm-SigLIP",
    "tiny-timm-class-token",
]
CONV = ConvDecoderConfig(channels=4, channel_multipliers=[1, 2, 2], residual_blocks=1, groups=2)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> SavedClip:
    directory = tmp_path_factory.mktemp("clip") / request.param
    with isolated_random(0):
        if request.param == "siglip":
            return save_siglip(directory, tokenizer)
        return save_clip(directory) if request.param == "clip" else save_open_clip(directory, request.param)


@pytest.fixture(scope="module")
def clip(saved: SavedClip) -> PretrainedClip:
    return load_pretrained(saved.config, SIZE)


@pytest.fixture
def tower(clip: PretrainedClip) -> VisionTower:
    return tower_of(clip)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE) * 2 - 1


def tower_of(clip: PretrainedClip) -> VisionTower:
    config = VisionTowerConfig(
        vision_config=clip.vision_config.to_dict(),
        image_mean=clip.image_mean,
        image_std=clip.image_std,
        quantizer={"codebook_size": 16, "depth": 2},
        decoder=asdict(DECODER if clip.vision_config.image_size == SIZE else CONV),
    )
    tower = VisionTower.from_clip(clip.vision, config).eval()
    fill_codebooks(tower.quantizer)
    return tower


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_quantised_layer_and_image_embedding_are_the_librarys(
    tower: VisionTower, saved: SavedClip, images: Tensor
) -> None:
    oracle, encoder = saved.oracle(SIZE), tower.encoder
    hidden = encoder.hidden(images)
    assert (encoder.grid, encoder.prefix_tokens) == (saved.grid, saved.prefix_tokens)
    assert hidden.shape == (3, *encoder.grid, encoder.width)
    close(hidden.flatten(1, 2), oracle.hidden(images)[:, saved.prefix_tokens :])
    close(encoder(images), oracle.image(images))
    if not saved.prefix_tokens:  # then nothing but the grid reaches the last layer
        close(encoder.pool(hidden), oracle.image(images))


def test_text_embeddings_are_the_librarys(clip: PretrainedClip, tower: VisionTower, saved: SavedClip) -> None:
    texts = clip.text.embed(CAPTIONS)
    close(texts, saved.oracle(SIZE).text(CAPTIONS))
    assert texts.shape == (2, tower.encoder(torch.zeros(1, 3, SIZE, SIZE)).shape[-1])
    assert not any(weight.requires_grad for weight in clip.text.parameters())


def test_logit_scale_and_bias_are_the_ones_that_it_has_learned(
    clip: PretrainedClip, saved: SavedClip
) -> None:
    (weights,) = saved.directory.glob("*.safetensors")
    learned = load_file(weights)
    assert clip.logit_scale == pytest.approx(learned["logit_scale"].exp().item(), rel=1e-6)
    assert clip.logit_bias == (learned["logit_bias"].item() if "logit_bias" in learned else None)
    assert (clip.logit_bias is not None) == ("siglip" in saved.directory.name.lower())


@torch.no_grad()
def test_nothing_but_codes_reaches_the_embedding(tower: VisionTower, images: Tensor) -> None:
    """Pictures whose codes mean the same have the same embedding, whatever else differs."""
    fill_codebooks(tower.quantizer, scale=0.0)
    embedding = tower(images).embedding
    torch.testing.assert_close(embedding[1:], embedding[:1].expand(2, -1), rtol=0, atol=1e-6)
    assert not torch.allclose(tower.encoder(images)[1], tower.encoder(images)[0], atol=1e-3), "they do differ"


def test_the_class_tokens_place_is_taken_by_a_learned_vector(
    tower: VisionTower, saved: SavedClip, images: Tensor
) -> None:
    state = tower.encoder.class_state
    if not saved.prefix_tokens:
        assert state is None
        return
    assert state is not None
    with torch.no_grad():
        grey = saved.oracle(SIZE).hidden(torch.zeros(1, 3, SIZE, SIZE))
    close(state, grey[0, : saved.prefix_tokens])
    output = tower(images)
    (output.embedding * F.normalize(torch.randn_like(output.embedding), dim=-1)).sum().backward()
    assert state.grad is not None and state.grad.abs().sum() > 0


@torch.no_grad()
def test_saved_and_loaded_without_the_clip_it_is_the_same(
    saved: SavedClip, images: Tensor, tmp_path: Path
) -> None:
    moved = shutil.copytree(saved.directory, tmp_path / "clip")
    here = {"pretrained": saved.config.pretrained.replace(str(saved.directory), str(moved))}
    clip = load_pretrained(type(saved.config)(**{**asdict(saved.config), **here}), SIZE)
    tower = tower_of(clip)
    tower.save_pretrained(tmp_path / "run" / "model")
    clip.text.save_pretrained(tmp_path / "run" / "model" / TEXT_ENCODER)
    shutil.rmtree(moved)
    for file in (tmp_path / "run").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
    loaded, texts = (
        load_tower(tmp_path / "run"),
        TextEncoder.from_pretrained(tmp_path / "run/model" / TEXT_ENCODER),
    )
    for name, value in tower.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.encode(images), tower.encode(images))
    close(loaded(images).embedding, tower(images).embedding)
    close(texts.embed(CAPTIONS), clip.text.embed(CAPTIONS))
    assert texts.length == clip.text.length


@torch.no_grad()
@pytest.mark.parametrize("size", [48, 28])
def test_another_resolution_is_what_the_library_makes_of_it(saved: SavedClip, size: int) -> None:
    tower = tower_of(load_pretrained(saved.config, size))
    assert (tower.image_size, tower.grid) == (size, (size // 8, size // 8))
    images = torch.rand(2, 3, size, size) * 2 - 1
    oracle = saved.oracle(size)
    close(tower.encoder.hidden(images).flatten(1, 2), oracle.hidden(images)[:, saved.prefix_tokens :])
    close(tower.encoder(images), oracle.image(images))


def test_its_own_resolution_leaves_every_weight_as_it_is(clip: PretrainedClip, saved: SavedClip) -> None:
    again = load_pretrained(saved.config, SIZE).vision.state_dict()
    resized = load_pretrained(saved.config, 48).vision.state_dict()
    for name, value in clip.vision.state_dict().items():
        assert torch.equal(again[name], value), name
        if "pos" not in name:
            assert torch.equal(resized[name], value), name


def test_training_reaches_every_weight(tower: VisionTower, images: Tensor) -> None:
    """One that no gradient reaches would stop a training on several processes."""
    output = tower.train()(images)
    (output.reconstruction.square().mean() + output.embedding[:, 0].sum() + output.commitment).backward()
    assert [name for name, weight in tower.named_parameters() if weight.grad is None] == []


def test_pictures_can_be_compared_in_its_features(tower: VisionTower, images: Tensor) -> None:
    """The patches after layer L-1, which is where the tower is cut, as layer L reads them."""
    layers = len(tower.encoder.layers)
    distance = ClipDistance(tower.encoder, [layers - 1, layers])
    hidden = tower.encoder.hidden(images).flatten(1, 2)
    close(distance.features(images)[0], F.normalize(tower.encoder.norms[-2](hidden), dim=-1))
    assert distance(images.flip(0), images) > 0.01
    assert distance(images, images) == 0


def test_captions_can_be_read_in_other_processes(clip: PretrainedClip) -> None:
    there = pickle.loads(pickle.dumps(clip.text.tokenizer))
    ids = caption_ids(there, CAPTIONS, clip.text.length)
    assert torch.equal(ids, caption_ids(clip.text.tokenizer, CAPTIONS, clip.text.length))


def test_activation_checkpointing_changes_no_gradient(clip: PretrainedClip, images: Tensor) -> None:
    plain, checkpointed = tower_of(clip), tower_of(clip)
    checkpointed.quantizer.load_state_dict(plain.quantizer.state_dict())
    checkpointed.activation_checkpointing_enable()
    kept = []
    for tower in (plain, checkpointed):
        seen: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, seen=seen: seen.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with hooks:
            hidden = tower.encoder.train().hidden(images)
        kept.append(sum(seen))
        hidden.square().sum().backward()
    assert kept[1] < 0.6 * kept[0]
    others = dict(checkpointed.encoder.named_parameters())
    for name, weight in plain.encoder.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(others[name].grad, weight.grad)
