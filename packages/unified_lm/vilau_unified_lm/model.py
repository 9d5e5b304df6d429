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
from vilau_unified_lm.losses import UnifiedLoss, unified_loss
from vilau_unified_lm.packing import IGNORE, MixedSequence, packed_attention_mask
from vilau_unified_lm.projector import Projector
from vilau_vision_tower.tokenizer import ImageTokenizer
from vilau_vision_tower.tower import VisionTower


@dataclass
class UnifiedLMOutput:
    loss: UnifiedLoss
    text_logits: Tensor  # float [T, V], at the places with a text target
    visual_logits: Tensor  # float [N, D, K], at the places with a visual target


class UnifiedLM(PreTrainedModel):
    """Backbone, projector and depth transformer over a frozen image tokenizer.

    Initialisation: the backbone's own; projector and depth transformer as their docstrings say.
    """

    config_class = UnifiedLMConfig
    config: UnifiedLMConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DepthTransformer", "Projector"]  # beside the backbone's layers and the tower's

    def __init__(self, config: UnifiedLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.tower_config)
        self.vision_tower.requires_grad_(False)
        tower: ImageTokenizer = self.vision_tower
        hidden = config.backbone_config.hidden_size
        self.llm = AutoModelForCausalLM.from_config(config.backbone_config)
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

    def forward(self, batch: MixedSequence) -> UnifiedLMOutput:
        """Losses and logits of a packed batch; the depth transformer runs on supervised visual positions only."""
        embeddings = self.image_tokenizer.embed_codes(batch.codes)
        hidden = self.backbone(
            self.embed(batch, embeddings.sum(dim=-2)),
            attention_mask=packed_attention_mask(batch.document_ids, batch.branch_ids),
            position_ids=batch.position_ids,
        )
        has_text, has_visual = batch.text_targets != IGNORE, batch.visual_targets != IGNORE
        target = batch.visual_targets[has_visual]
        text_logits = self.llm.lm_head(hidden[has_text])
        visual_logits = self.depth(hidden[has_visual], embeddings[target])
        loss = unified_loss(text_logits, batch.text_targets[has_text], visual_logits, batch.codes[target])
        return UnifiedLMOutput(loss=loss, text_logits=text_logits, visual_logits=visual_logits)

    def embed(self, batch: MixedSequence, features: Tensor) -> Tensor:
        """Inputs of the backbone, float [B, L, hidden]; features float [N, C]: the visual positions' z_q."""
        inputs = self.llm.get_input_embeddings()(batch.token_ids)
        projected = self.projector(features, batch.grid_index).to(inputs.dtype)
        return inputs.masked_scatter(batch.visual_mask.unsqueeze(-1), projected)

    def backbone(self, inputs: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """float [B, L, hidden] -> hidden states float [B, L, hidden]; attention_mask bool [B, 1, L, L]."""
        output = self.llm.model(
            inputs_embeds=inputs, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


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
