"""The vision tower (VILA-U, section 3.1 and figure 3).

    images -> encoder layers 1..L-1 -> residual quantiser -> z_q -+-> layer L, pooling -> image embedding
                                                                  +-> pixel decoder    -> reconstruction

Both ends read the quantised features only: whatever the codes lose is lost to meaning and to pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vilau_common.checked_model import CheckedModel
from vilau_common.errors import UserError
from vilau_vision_tower.clip.families import build_image_encoder
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.decoder import build_decoder
from vilau_vision_tower.quantizer import QuantizerOutput, build_quantizer
from vilau_vision_tower.tokenizer import ImageTokenizer


@dataclass
class VisionTowerOutput:
    codes: Tensor  # int64 [B, h, w, D]
    z_q: Tensor  # float [B, h, w, width], straight-through
    reconstruction: Tensor  # float [B, 3, H, W], about [-1, 1]
    embedding: Tensor  # float [B, E], unit length: compares with the text encoder's
    commitment: Tensor  # float []
    codebook: Tensor  # float []
    restarts: Tensor | None  # float [], codes that restarted in this step, of kinds that do so


class VisionTower(CheckedModel, ImageTokenizer):
    """RQ-VAE on a CLIP image encoder.

    Initialisation: encoder as its library does it, or from a CLIP's weights (`from_clip`); decoder and projections as
    PyTorch's layers; codebooks from the first training batch.
    """

    config_class = VisionTowerConfig
    config: VisionTowerConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True  # of the encoder's layers and the decoder's blocks
    # Distances in lower precision would confuse close codes.
    _keep_in_fp32_modules_strict = ["quantizer"]
    _no_split_modules = ["SiglipEncoderLayer", "CLIPEncoderLayer", "ResidualAttentionBlock", "Block"]

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__(config)
        assert config.image_mean is not None and config.image_std is not None
        self.encoder = build_image_encoder(config.encoder_config, config.image_mean, config.image_std)
        width, size = self.encoder.width, self.encoder.image_size
        self.quantizer = build_quantizer(config.quantizer_config, width)
        self.decoder = build_decoder(config.decoder_config, width, self.encoder.grid, size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every layer has initialised itself (see the class's docstring)."""

    @classmethod
    def from_clip(cls, vision: nn.Module, config: VisionTowerConfig) -> VisionTower:
        """A tower whose image encoder carries the weights of `vision`, a CLIP's image tower as its library has it."""
        tower = cls(config)
        tower.encoder.model.load_state_dict(vision.state_dict())
        tower.encoder.reset_class_state()
        return tower

    @property
    def grid(self) -> tuple[int, int]:
        return self.encoder.grid

    @property
    def depth(self) -> int:
        return self.quantizer.depth

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def feature_width(self) -> int:
        return self.quantizer.code_width

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    def forward(self, pixel_values: Tensor) -> VisionTowerOutput:
        """Images float [B, 3, H, W] in [-1, 1] -> VisionTowerOutput."""
        quantized = self.quantize(pixel_values)
        return VisionTowerOutput(
            codes=quantized.codes,
            z_q=quantized.z_q,
            reconstruction=self.decoder(quantized.z_q.permute(0, 3, 1, 2)),
            embedding=self.pool(quantized.z_q.to(self.dtype)),
            commitment=quantized.commitment,
            codebook=quantized.codebook,
            restarts=quantized.restarts,
        )

    def quantize(self, images: Tensor) -> QuantizerOutput:
        """The quantised output of the penultimate layer; codes int64 [B, h, w, D]."""
        return self.quantizer(self.encoder.hidden(images))

    def pool(self, z_q: Tensor) -> Tensor:
        """Quantised features float [B, h, w, width] -> unit image embedding float [B, E]."""
        return self.encoder.pool(z_q)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantize(images).codes

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.quantizer.embed(codes)

    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        return self.quantizer.embed_depth(codes, depth)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.quantizer.dequantize(codes).permute(0, 3, 1, 2))
        return pixels.float().clamp(-1, 1)


def load_tower(directory: str | Path) -> VisionTower:
    """The tower saved in `directory` (a run directory or its `model/`), in evaluation mode.

    Raises UserError where there is none, where another model is, or where its weights are not whole.
    """
    path = Path(directory)
    path = path / "model" if (path / "model").is_dir() else path
    if not (path / "config.json").is_file():
        raise UserError(
            f"no vision tower in {directory}: expected a run directory of `make train-tower` with model/config.json"
        )
    kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != VisionTowerConfig.model_type:
        raise UserError(f"no vision tower in {directory}: the model there is of type {kind!r}")
    tower: VisionTower = VisionTower.from_pretrained(path, dtype=torch.float32)
    return tower.eval()
