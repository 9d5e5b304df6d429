"""VILA (arXiv 2312.07533, figure 2), the baseline that the unified LM is compared with.

    text ids -> token embedding ------------------------------------+
                                                                    +-> causal LM -> LM head -> next text token
    images -> image encoder -> penultimate layer -> projector ------+

The encoder is the CLIP that a vision tower begins as, with nothing quantised, and its features are read from the same
layer. The loss is that of text; pictures are read, never drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from vilau_common.errors import UserError
from vilau_common.images import from_pixels
from vilau_unified_lm.losses import MIB, LossConfig, TokenLosses, chunked_cross_entropy
from vilau_unified_lm.mixed_lm import MixedLM
from vilau_unified_lm.packing import IGNORE
from vilau_unified_lm.vila.config import VilaConfig
from vilau_unified_lm.vila.data import NUMBER_DEPTH, PictureBatch
from vilau_unified_lm.vila.projector import VilaProjector
from vilau_vision_tower.clip.families import build_image_encoder


class VilaModel(MixedLM):
    """Backbone and projector over an image encoder, frozen unless `config.train_encoder`.

    Initialisation: backbone and encoder as their libraries do it, or the encoder from a CLIP's weights; the projector
    as its docstring says.
    """

    config_class = VilaConfig
    config: VilaConfig

    def __init__(self, config: VilaConfig, llm: PreTrainedModel | None = None) -> None:
        """llm: a trained backbone of config.text_config; None: one with new weights."""
        super().__init__(config)
        assert config.image_mean is not None and config.image_std is not None
        self.encoder = build_image_encoder(config.encoder_config, config.image_mean, config.image_std)
        self.llm = llm if llm is not None else AutoModelForCausalLM.from_config(config.backbone_config)
        self.projector = VilaProjector(
            config.projector_config, self.encoder.width, config.backbone_config.hidden_size
        )
        self.post_init()
        self.train(self.training)

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself (see the class's docstring)."""

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.encoder.image_size

    @property
    def places(self) -> int:
        """The LM's places for a picture."""
        return self.projector.places(self.encoder.grid)

    def train(self, mode: bool = True) -> VilaModel:
        """A frozen encoder stays frozen and in evaluation mode."""
        super().train(mode)
        # `from_pretrained` makes all parameters anew, with gradients, and comes by here through its eval().
        if not self.config.train_encoder:
            self.encoder.eval().requires_grad_(False)
        return self

    def forward(self, batch: PictureBatch, loss: LossConfig | None = None) -> TokenLosses:
        """Cross-entropies of a packed batch's text targets, and none of codes.

        loss: how much memory logits may take; None: its defaults.
        """
        sequence = batch.sequence
        has_text = sequence.text_targets != IGNORE
        text = chunked_cross_entropy(
            self.text_logits,
            self.hidden_states(batch)[has_text],
            sequence.text_targets[has_text],
            self.config.backbone_config.vocab_size,
            (loss or LossConfig()).logits_mib * MIB,
        )
        return TokenLosses(text, text.new_zeros(0, NUMBER_DEPTH), positions=0)

    def logits(self, batch: PictureBatch) -> Tensor:
        """All logits float [T, V] of a packed batch's text targets at once, for a look at a few documents."""
        return self.text_logits(self.hidden_states(batch)[batch.sequence.text_targets != IGNORE])

    def hidden_states(self, batch: PictureBatch) -> Tensor:
        """The backbone's hidden states, float [B, L, hidden]."""
        return self.read(batch.sequence, self.embed(batch))

    def embed(self, batch: PictureBatch) -> Tensor:
        """Inputs of the backbone, float [B, L, hidden]."""
        return self.embed_places(batch.sequence, self.see(batch.pixels).flatten(0, 1))

    def see(self, pixels: Tensor) -> Tensor:
        """Pictures uint8 [P, H, W, 3] -> what the LM reads of them, float [P, places, hidden]; P may be 0."""
        if len(pixels):
            features = self.encoder.hidden(from_pixels(pixels))
        else:  # not every library's attention takes an empty batch
            features = torch.zeros(0, *self.encoder.grid, self.encoder.width, device=pixels.device)
        return self.projector(features)


def is_vila(directory: str | Path) -> bool:
    """Whether a VILA is saved in `directory` (a run directory or its `model/`)."""
    file = _model_directory(directory) / "config.json"
    return (
        file.is_file()
        and json.loads(file.read_text(encoding="utf-8")).get("model_type") == VilaConfig.model_type
    )


def load_vila(directory: str | Path) -> VilaModel:
    """The model saved in `directory` (a run directory or its `model/`), in evaluation mode.

    Raises UserError where there is none.
    """
    if not is_vila(directory):
        raise UserError(f"no VILA in {directory}: expected a run directory of `make train-vila` with model/")
    model: VilaModel = VilaModel.from_pretrained(_model_directory(directory), dtype=torch.float32)
    return model.eval()


def _model_directory(directory: str | Path) -> Path:
    path = Path(directory)
    return path / "model" if (path / "model").is_dir() else path
