"""The vision tower (VILA-U, section 3.1 and figure 3).

    images -> encoder layers 1..L-1 -> residual quantiser -> z_q -+-> layer L, pooling -> image embedding
                                                                  +-> pixel decoder    -> reconstruction

Both ends read the quantised features only: whatever the codes lose is lost to meaning and to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionModel

from vilau_common.errors import UserError
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.decoder import build_decoder
from vilau_vision_tower.quantizer import QuantizerOutput, build_quantizer
from vilau_vision_tower.tokenizer import ImageTokenizer


@dataclass
class VisionTowerOutput:
    codes: Tensor  # int64 [B, h, w, D]
    z_q: Tensor  # float [B, h, w, width], straight-through
    reconstruction: Tensor  # float [B, 3, H, W], about [-1, 1]
    embedding: Tensor  # float [B, width], unit length: compares with the text encoder's
    commitment: Tensor  # float []
    codebook: Tensor  # float []


class VisionTower(PreTrainedModel, ImageTokenizer):
    """RQ-VAE on a CLIP image encoder.

    Initialisation: encoder as transformers' SigLIP, or from its weights (`from_clip`); decoder and projections as
    PyTorch's layers; codebooks from the first training batch.
    """

    config_class = VisionTowerConfig
    config: VisionTowerConfig
    main_input_name = "images"
    supports_gradient_checkpointing = True  # of the encoder's layers and the decoder's blocks
    _no_split_modules = ["SiglipEncoderLayer"]

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__(config)
        vision = config.encoder_config
        self.encoder = SiglipVisionModel(vision)
        self.quantizer = build_quantizer(config.quantizer_config, vision.hidden_size)
        side = vision.image_size // vision.patch_size
        self._grid = (side, side)
        self.decoder = build_decoder(config.decoder_config, vision.hidden_size, self._grid, vision.image_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every layer has initialised itself (see the class's docstring)."""

    @classmethod
    def from_clip(cls, encoder: SiglipVisionModel, config: VisionTowerConfig) -> VisionTower:
        """A tower whose image encoder carries the weights of `encoder`."""
        tower = cls(config)
        tower.encoder.load_state_dict(encoder.state_dict())
        return tower

    @property
    def grid(self) -> tuple[int, int]:
        return self._grid

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
        return int(self.config.encoder_config.image_size)

    def forward(self, images: Tensor) -> VisionTowerOutput:
        """float [B, 3, H, W] in [-1, 1] -> VisionTowerOutput."""
        quantized = self.quantize(images)
        return VisionTowerOutput(
            codes=quantized.codes,
            z_q=quantized.z_q,
            reconstruction=self.decoder(quantized.z_q.permute(0, 3, 1, 2)),
            embedding=self.pool(quantized.z_q),
            commitment=quantized.commitment,
            codebook=quantized.codebook,
        )

    def quantize(self, images: Tensor) -> QuantizerOutput:
        """The quantised output of the penultimate layer; codes int64 [B, h, w, D]."""
        hidden = self.encoder.embeddings(images)
        for layer in self.encoder.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        return self.quantizer(hidden.unflatten(1, self.grid))

    def pool(self, z_q: Tensor) -> Tensor:
        """Quantised features float [B, h, w, width] -> unit image embedding float [B, width]."""
        hidden = self.encoder.encoder.layers[-1](z_q.flatten(1, 2), attention_mask=None)
        return F.normalize(self.encoder.head(self.encoder.post_layernorm(hidden)), dim=-1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantize(images).codes

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.quantizer.embed(codes)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.quantizer.dequantize(codes).permute(0, 3, 1, 2))
        return pixels.clamp(-1, 1)


def load_tower(directory: str | Path) -> VisionTower:
    """The tower saved in `directory` (a run directory or its `model/`), in evaluation mode.

    Raises UserError where there is none.
    """
    path = Path(directory)
    path = path / "model" if (path / "model").is_dir() else path
    if not (path / "config.json").is_file():
        raise UserError(
            f"no vision tower in {directory}: expected a run directory of `make train-tower` with model/config.json"
        )
    tower: VisionTower = VisionTower.from_pretrained(path, dtype=torch.float32)
    return tower.eval()
