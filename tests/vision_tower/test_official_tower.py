"""The official tower's layout: sizes known without a hub, configurations, and a decoder on any latent grid."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_decoder import ReferenceDecoder

from vilau_common.errors import UserError
from vilau_vision_tower.decoder import ConvDecoder
from vilau_vision_tower.official import tower_config, tower_links
from vilau_vision_tower.official.links import decoder_links
from vilau_vision_tower.official.siglip import siglip_vision_config
from vilau_vision_tower.tower import VisionTower

# As the released configuration of the tower of 384 pixels: 27 x 27 positions on a latent grid of 24 x 24.
LARGE: dict[str, Any] = {
    "pretrained_model": "google/siglip-so400m-patch14-384",
    "embed_dim": 1152,
    "n_embed": 16384,
    "latent_shape": [27, 27, 1152],
    "code_shape": [27, 27, 16],
    "shared_codebook": True,
    "restart_unused_codes": True,
    "decay": 0.99,
    "decoder_latent_shape": [24, 24],
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 384,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [24],
        "dropout": 0.0,
    },
}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """A tower on a SigLIP of 42 pixels in patches of 14, whose config.json lies in tmp_path."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 42,
        "patch_size": 14,
    }
    (tmp_path / "siglip").mkdir()
    config = {"model_type": "siglip", "text_config": {}, "vision_config": vision}
    (tmp_path / "siglip" / "config.json").write_text(json.dumps(config))
    return {
        "pretrained_model": "siglip",
        "embed_dim": 32,
        "n_embed": 8,
        "latent_shape": [3, 3, 32],
        "code_shape": [3, 3, 2],
        "shared_codebook": False,
        "decoder_latent_shape": [10, 10],
        "ddconfig": {
            "z_channels": 16,
            "resolution": 40,
            "ch": 32,
            "ch_mult": [1, 2, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [20],
        },
    }


@pytest.mark.parametrize(
    ("name", "million", "grid"),
    [("google/siglip-large-patch16-256", 316, 16), ("google/siglip-so400m-patch14-384", 428, 27)],
)
def test_published_sizes_need_no_hub(name: str, million: int, grid: int) -> None:
    """The parameters are those that QLIP's table prints for both encoders."""
    config = siglip_vision_config(name, Path("nowhere"), "config.json")
    with torch.device("meta"):
        from transformers import SiglipVisionModel

        model = SiglipVisionModel(config)
    assert config.image_size // config.patch_size == grid
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == million


def test_large_tower() -> None:
    """42M parameters in the decoder, as published, and 24 x 24 latent positions of 27 x 27."""
    config = tower_config(LARGE, Path("nowhere"), "vision_tower/config.json")
    with torch.device("meta"):
        tower = VisionTower(config)
    assert (tower.grid, tower.depth, tower.codebook_size) == ((27, 27), 16, 16384)
    assert isinstance(tower.decoder, ConvDecoder)
    assert (tower.decoder.latent_size, tower.image_size) == (24, 384)
    convolutions = [p for name, p in tower.decoder.named_parameters() if not name.startswith("latent.")]
    assert round(sum(parameter.numel() for parameter in convolutions) / 1e6) == 42
    assert tower.quantizer.codebooks.shape == (1, 16384, 1152)


def test_decoder_of_an_interpolated_grid(small: dict[str, Any], tmp_path: Path) -> None:
    """Interpolated before the 1x1 convolution there, behind it here; attention at another level than the latent."""
    tower = VisionTower(tower_config(small, tmp_path, "config.json")).eval()
    reference = ReferenceDecoder(
        embed_dim=32,
        z_channels=16,
        ch=32,
        ch_mult=[1, 2, 1],
        num_res_blocks=1,
        attn_resolutions=[20],
        resolution=40,
    ).eval()
    theirs = reference.state_dict()
    state = {
        link.ours.removeprefix("decoder."): link.join([theirs[_bare(name)] for name in link.theirs])
        for link in decoder_links(tower.decoder)
    }
    assert {_bare(name) for link in decoder_links(tower.decoder) for name in link.theirs} == set(theirs)
    tower.decoder.load_state_dict(state)
    z_q = torch.randn(2, 32, 3, 3)
    expected = reference(F.interpolate(z_q, size=(10, 10), mode="bilinear"))
    assert expected.shape == (2, 3, 40, 40)
    torch.testing.assert_close(tower.decoder(z_q), expected, rtol=1e-4, atol=1e-5)


def _bare(name: str) -> str:
    return name.removeprefix("rqvaesiglip.").removeprefix("decoder.")


def test_links_are_of_all_tensors_and_back(small: dict[str, Any], tmp_path: Path) -> None:
    """Split and joined again, every tensor is what it was; together they are the state dict but for `started`."""
    tower = VisionTower(tower_config(small, tmp_path, "config.json"))
    state = {name: torch.randn(value.shape) for name, value in tower.state_dict().items()}
    links = tower_links(tower, [])
    assert {link.ours for link in links} == set(state) - {"quantizer.started"}
    names = [name for link in links for name in link.theirs]
    assert len(set(names)) == len(names)
    for link in links:
        parts = link.split(state[link.ours])
        assert torch.equal(link.join(parts), state[link.ours])
        assert link.their_shapes(state[link.ours].shape) == {
            name: tuple(part.shape) for name, part in zip(link.theirs, parts, strict=True)
        }
    assert "rqvaesiglip.quantizer.codebooks.1.weight" in names


def test_shared_codebook_is_read_under_the_name_it_has(small: dict[str, Any], tmp_path: Path) -> None:
    tower = VisionTower(tower_config({**small, "shared_codebook": True}, tmp_path, "config.json"))
    (link,) = [
        link
        for link in tower_links(tower, ["rqvaesiglip.quantizer.codebooks.1.weight"])
        if link.ours == "quantizer.codebooks"
    ]
    assert link.theirs == ("rqvaesiglip.quantizer.codebooks.1.weight",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pretrained_model": "google/siglip-base-patch16-224"},
            ["pretrained_model", "siglip-base-patch16-224"],
        ),
        ({"embed_dim": 16}, ["embed_dim", "16", "32"]),
        ({"code_shape": [4, 4, 2]}, ["code_shape", "[4, 4, 2]"]),
        ({"code_shape": [3, 3, 99]}, ["depth is 99"]),
        ({"n_embed": [8, 16]}, ["n_embed", "[8, 16]"]),
        ({"n_embed": None}, ["rqvaesiglip has no n_embed"]),
        ({"decoder_latent_shape": [8, 10]}, ["decoder_latent_shape", "[8, 10]"]),
        ({"ddconfig": {"ch": 32}}, ["ddconfig has no ch_mult"]),
    ],
)
def test_configuration_that_cannot_be(
    small: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        tower_config({**copy.deepcopy(small), **changes}, tmp_path, "vision_tower/config.json")
    assert all(word in str(error.value) for word in ["vision_tower/config.json", *words])
