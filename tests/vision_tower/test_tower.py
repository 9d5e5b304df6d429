"""The tower: CLIP's encoder around a quantiser, two ends that read codes only, and its form on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_tower import GRID, IMAGE_SIZE, WIDTH, tiny_tower
from torch import Tensor
from transformers import SiglipModel

from vilau_common.errors import UserError
from vilau_common.run import isolated_random
from vilau_vision_tower.decoder import ConvDecoderConfig
from vilau_vision_tower.quantizer import QuantizerOutput
from vilau_vision_tower.tokenizer import ImageTokenizer
from vilau_vision_tower.tower import VisionTower, load_tower

CONV = ConvDecoderConfig(channels=4, channel_multipliers=[1, 2, 2], residual_blocks=1, groups=2)
# What a tower may be made of; the tests that hold for all of them go through these.
VARIANTS = {
    "plain": {},
    "narrow codes": {"code_dim": 5},
    "shared codebook": {"shared_codebook": True},
    "one depth": {"depth": 1, "codebook_size": 7},
    "convolutions": {"decoder": CONV},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def any_tower(request: pytest.FixtureRequest, clip: SiglipModel) -> VisionTower:
    return tiny_tower(clip, **request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1


@pytest.fixture
def unquantised(tower: VisionTower) -> list[Tensor]:
    """The tower's quantiser lets everything through; the list gets what came to it."""
    seen: list[Tensor] = []

    def let_through(hidden: Tensor) -> QuantizerOutput:
        seen.append(hidden)
        codes, zero = torch.zeros(*hidden.shape[:-1], 3, dtype=torch.int64), torch.zeros(())
        return QuantizerOutput(z_q=hidden, codes=codes, commitment=zero, codebook=zero)

    tower.quantizer.forward = let_through  # type: ignore[method-assign]
    return seen


def test_quantises_the_output_of_clips_penultimate_layer(
    tower: VisionTower, clip: SiglipModel, images: Tensor, unquantised: list[Tensor]
) -> None:
    tower(images)
    expected = clip.vision_model(pixel_values=images, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(unquantised[0].flatten(1, 2), expected, rtol=0, atol=1e-5)


def test_last_layer_and_pooling_are_clips(
    tower: VisionTower, clip: SiglipModel, images: Tensor, unquantised: list[Tensor]
) -> None:
    """Where the quantiser loses nothing, the tower's embedding is CLIP's."""
    embedding = tower(images).embedding
    expected = F.normalize(clip.vision_model(pixel_values=images).pooler_output, dim=-1)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)


def test_carries_a_copy_of_clips_weights(tower: VisionTower, clip: SiglipModel, images: Tensor) -> None:
    for name, value in clip.vision_model.state_dict().items():
        assert torch.equal(tower.encoder.model.state_dict()[name], value), name
    with torch.no_grad():
        before = clip.vision_model(pixel_values=images).pooler_output
        for parameter in tower.parameters():
            parameter.zero_()
        assert torch.equal(clip.vision_model(pixel_values=images).pooler_output, before)


def test_positions_are_rows_then_columns(
    tower: VisionTower, images: Tensor, unquantised: list[Tensor]
) -> None:
    """Codes stand where their pixels are: the encoder's first map sees one patch a position."""
    embedded = tower.encoder.embed(images)
    moved = images.clone()
    moved[:, :, 8:16, 24:32] += 1  # row 1, column 3
    changed = (tower.encoder.embed(moved) - embedded).abs().sum(dim=(0, 2)).view(GRID) > 0
    assert changed.nonzero().tolist() == [[1, 3]]
    assert tower(images).reconstruction is not None
    assert unquantised[0].shape == (3, *GRID, WIDTH)


def test_is_what_a_language_model_asks_for(any_tower: VisionTower, images: Tensor) -> None:
    assert isinstance(any_tower, ImageTokenizer)
    codes = any_tower.encode(images)
    assert codes.shape == (3, *any_tower.grid, any_tower.depth)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < any_tower.codebook_size
    embeddings = any_tower.embed_codes(codes)
    assert embeddings.shape == (3, *any_tower.grid, any_tower.depth, any_tower.feature_width)
    decoded = any_tower.decode(codes)
    assert decoded.shape == (3, 3, any_tower.image_size, any_tower.image_size)
    assert decoded.abs().max() <= 1


@torch.no_grad()
def test_both_ends_read_the_codes_alone(any_tower: VisionTower, images: Tensor) -> None:
    output = any_tower(images)
    features = any_tower.quantizer.dequantize(output.codes)
    torch.testing.assert_close(any_tower.pool(features), output.embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        any_tower.decode(output.codes), output.reconstruction.clamp(-1, 1), rtol=0, atol=1e-5
    )
    assert torch.equal(any_tower.encode(images), output.codes)


def test_embeddings_have_unit_length(any_tower: VisionTower, images: Tensor) -> None:
    torch.testing.assert_close(any_tower(images).embedding.norm(dim=-1), torch.ones(3))


def test_gradient_of_either_end_reaches_all_before_the_quantiser(
    any_tower: VisionTower, images: Tensor
) -> None:
    def reached(loss: Tensor) -> set[str]:
        any_tower.zero_grad()
        loss.backward()
        return {
            name
            for name, weight in any_tower.named_parameters()
            if weight.grad is not None and weight.grad.abs().sum() > 0
        }

    names = {name for name, _ in any_tower.named_parameters()}
    # A key's bias shifts all scores of a query alike: nothing depends on it.
    without_effect = {name for name in names if name.endswith("k_proj.bias")}
    decoder = {name for name in names if name.startswith("decoder.")}
    last = {
        name
        for name in names
        if name.startswith(
            ("encoder.model.encoder.layers.2.", "encoder.model.post_layernorm.", "encoder.model.head.")
        )
    }
    before = names - decoder - last
    assert any(name.startswith("quantizer.project") for name in before) == (
        any_tower.quantizer.config.code_dim is not None
    )
    output = any_tower(images)
    assert (
        reached((output.reconstruction - images).square().mean()) - without_effect
        == (before | decoder) - without_effect
    )
    output = any_tower(images)
    target = F.normalize(torch.randn_like(output.embedding), dim=-1)
    assert reached((output.embedding * target).sum()) - without_effect == (before | last) - without_effect
    output = any_tower(images)
    encoder = {name for name in before if not name.startswith("quantizer.project_out")}
    assert reached(output.commitment) - without_effect == encoder - without_effect


def test_saved_and_loaded_it_is_the_same(any_tower: VisionTower, images: Tensor, tmp_path: Path) -> None:
    any_tower.train()(images)  # codebooks, counts and sums all have moved
    any_tower.eval().save_pretrained(tmp_path / "model")
    loaded = load_tower(tmp_path)
    assert not loaded.training
    assert loaded.config.quantizer_config == any_tower.config.quantizer_config
    assert loaded.config.decoder_config == any_tower.config.decoder_config
    state = loaded.state_dict()
    assert state.keys() == any_tower.state_dict().keys()
    for name, value in any_tower.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
    assert loaded.quantizer.started
    with torch.no_grad():
        expected, output = any_tower(images), loaded(images)
    assert torch.equal(output.codes, expected.codes)
    # Not to the last bit: weights lie elsewhere in memory, which may choose another kernel.
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)
    torch.testing.assert_close(output.embedding, expected.embedding)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_tower_goes_on_training_where_it_was_saved(
    tower: VisionTower, images: Tensor, tmp_path: Path
) -> None:
    tower.save_pretrained(tmp_path)
    loaded = load_tower(tmp_path)
    for each in (tower, loaded):
        with isolated_random(0):  # restarts draw random numbers
            for _ in range(3):
                each.train()(images)
    for name, value in tower.quantizer.state_dict().items():
        assert torch.equal(loaded.quantizer.state_dict()[name], value), name


def test_a_tower_of_other_weights_is_refused(tower: VisionTower, tmp_path: Path) -> None:
    """transformers would fill what is missing with random numbers."""
    tower.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("encoder.model.", "encoder."): value for name, value in state.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"weights are missing, among them encoder\.model\..* another version"
    ):
        load_tower(tmp_path)


def test_a_missing_tower_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vision tower in .*nowhere: expected a run directory"):
        load_tower(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="no vision tower in .*: the model there is of type 'siglip'"):
        load_tower(tmp_path)
