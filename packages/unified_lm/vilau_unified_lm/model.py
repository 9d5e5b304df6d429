"""The unified LM (VILA-U, section 3.2 and figure 2).

    text ids -> token embedding ---------------+
                                               +-> causal LM -> hidden -+-> LM head            -> next text token
    codes -> sum of embeddings -> projector ---+                        +-> depth transformer  -> next D codes

The vision tower is a frozen part: it embeds codes here, and encodes and decodes images for generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from vilau_common.errors import UserError
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.depth import DepthTransformer
from vilau_unified_lm.losses import MIB, LossConfig, TokenLosses, chunked_cross_entropy, random_share
from vilau_unified_lm.mixed_lm import MixedLM
from vilau_unified_lm.packing import IGNORE, MixedSequence
from vilau_unified_lm.projector import Projector
from vilau_vision_tower.tokenizer import ImageTokenizer
from vilau_vision_tower.tower import VisionTower


@dataclass
class UnifiedLogits:
    text: Tensor  # float [T, V], at the places with a text target
    visual: Tensor  # float [N, D, K], at the places with a visual target


class UnifiedLM(MixedLM):
    """Backbone, projector and depth transformer over a frozen image tokenizer.

    Initialisation: the backbone's own; projector and depth transformer as their docstrings say.
    """

    config_class = UnifiedLMConfig
    config: UnifiedLMConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["DepthTransformer", "Projector"]  # beside the backbone's layers and the tower's

    def __init__(self, config: UnifiedLMConfig, llm: PreTrainedModel | None = None) -> None:
        """llm: a trained backbone of config.text_config; None: one with new weights."""
        super().__init__(config)
        self.vision_tower = VisionTower(config.tower_config)
        self.vision_tower.requires_grad_(False)
        tower: ImageTokenizer = self.vision_tower
        hidden = config.backbone_config.hidden_size
        self.llm = AutoModelForCausalLM.from_config(config.backbone_config) if llm is None else llm
        grid = tower.grid if config.grid_positions else None
        self.projector = Projector(
            tower.feature_width, hidden, config.projector_layers, grid, config.initializer_range
        )
        self.depth = DepthTransformer(
            config.depth_config,
            hidden,
            tower.feature_width,
            tower.codebook_size,
            tower.depth,
            config.initializer_range,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself (see the class's docstring)."""

    @classmethod
    def from_official(
        cls,
        directory: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device_map: str | dict[str, Any] | None = None,
        max_memory: dict[int | str, Any] | None = None,
        offload_folder: str | None = None,
        quantization_config: Any = None,
    ) -> UnifiedLM:
        """A checkpoint in the layout of the official VILA-U code, in evaluation mode; see `convert.read.load_official`.

        Raises UserError, naming file and key, for what is missing, cut off, unknown or does not fit.
        """
        from vilau_unified_lm.convert.read import load_official  # which needs this class

        return load_official(
            Path(directory),
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
            quantization_config=quantization_config,
        )[0]

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The frozen tower, as the LM knows it."""
        return self.vision_tower

    def train(self, mode: bool = True) -> UnifiedLM:
        """The tower stays frozen and in evaluation mode: its codebooks must not move."""
        super().train(mode)
        # `from_pretrained` makes all parameters anew, with gradients, and comes by here through its eval().
        self.vision_tower.eval().requires_grad_(False)
        return self

    def forward(self, batch: MixedSequence, loss: LossConfig | None = None) -> TokenLosses:
        """Cross-entropies of a packed batch's targets; the depth transformer runs on supervised positions only.

        loss: which share of them, and how much memory logits may take; None: its defaults. `losses.unified_loss` makes
        the objective of what comes out.
        """
        loss = loss or LossConfig()
        memory = loss.logits_mib * MIB
        hidden, embeddings = self.hidden_states(batch)
        has_text, has_visual = batch.text_targets != IGNORE, batch.visual_targets != IGNORE
        text = chunked_cross_entropy(
            self.text_logits,
            hidden[has_text],
            batch.text_targets[has_text],
            self.config.backbone_config.vocab_size,
            memory,
        )
        before, target = hidden[has_visual], batch.visual_targets[has_visual]
        positions = len(target)
        if loss.depth_share < 1:
            drawn = random_share(positions, loss.depth_share, target.device)
            before, target = before[drawn], target[drawn]
        visual = chunked_cross_entropy(
            self.depth.logits,
            self.depth(before, embeddings[target]).flatten(0, 1),
            batch.codes[target].flatten(),
            self.image_tokenizer.codebook_size,
            memory,
        )
        return TokenLosses(text, visual.view(-1, self.image_tokenizer.depth), positions)

    def logits(self, batch: MixedSequence) -> UnifiedLogits:
        """All logits of a packed batch's targets at once, for a look at a few documents; training needs none."""
        hidden, embeddings = self.hidden_states(batch)
        has_visual = batch.visual_targets != IGNORE
        states = self.depth(hidden[has_visual], embeddings[batch.visual_targets[has_visual]])
        text = self.text_logits(hidden[batch.text_targets != IGNORE])
        return UnifiedLogits(text, self.depth.logits(states))

    def hidden_states(self, batch: MixedSequence) -> tuple[Tensor, Tensor]:
        """The backbone's hidden states float [B, L, hidden], and the embeddings of `batch.codes` [N, D, C]."""
        embeddings = self.image_tokenizer.embed_codes(batch.codes)
        return self.read(batch, self.embed(batch, embeddings.sum(dim=-2))), embeddings

    def embed(self, batch: MixedSequence, features: Tensor) -> Tensor:
        """Inputs of the backbone, float [B, L, hidden]; features float [N, C]: the visual positions' z_q."""
        return self.embed_places(batch, self.projector(features, batch.grid_index))


def model_directory(directory: str | Path) -> Path:
    """Where the model of a run directory is: in its lm/ of a whole line, its model/, or itself.

    Raises UserError where there is none.
    """
    path = Path(directory)
    for inner in ("lm", "model"):
        path = path / inner if (path / inner).is_dir() else path
    if not (path / "config.json").is_file():
        raise UserError(
            f"no unified LM in {directory}: expected a run directory of `make train-lm` with model/"
        )
    return path


def load_unified_lm(
    directory: str | Path,
    dtype: torch.dtype | str = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> UnifiedLM:
    """The model saved in `directory` (a run directory or its `model/`), in evaluation mode.

    dtype, device_map: as `from_pretrained` takes them. Raises UserError where there is none.
    """
    path = model_directory(directory)
    model: UnifiedLM = UnifiedLM.from_pretrained(path, dtype=dtype, device_map=device_map)
    return model.eval()
