"""A causal LM that reads mixed sequences: what the unified LM and its baseline VILA share."""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from vilau_common.checked_model import CheckedModel
from vilau_unified_lm.attention import mask_for
from vilau_unified_lm.packing import MixedSequence


class MixedLM(CheckedModel):
    """A backbone (`llm`, any transformers causal LM) whose inputs at visual positions are projected features.

    Subclasses build `llm`, and say where those features come from.
    """

    llm: PreTrainedModel
    _supports_sdpa = True

    def embed_places(self, batch: MixedSequence, projected: Tensor) -> Tensor:
        """Inputs of the backbone, float [B, L, hidden]; projected float [N, hidden]: at the visual positions."""
        inputs = self.llm.get_input_embeddings()(batch.token_ids)
        return inputs.masked_scatter(batch.visual_mask.unsqueeze(-1), projected.to(inputs.dtype))

    def read(self, batch: MixedSequence, inputs: Tensor) -> Tensor:
        """The backbone's hidden states float [B, L, hidden] of a packed batch with these inputs, of the same shape."""
        mask = mask_for(self.llm.config._attn_implementation, batch.document_ids, batch.branch_ids)
        return self.backbone(inputs, mask, batch.position_ids)

    def backbone(self, inputs: Tensor, attention_mask: Tensor | BlockMask, position_ids: Tensor) -> Tensor:
        """float [B, L, hidden] -> hidden states float [B, L, hidden]; mask: `mask_for`'s, or any 4-D one."""
        output = self.llm.get_decoder()(
            inputs_embeds=inputs, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def text_logits(self, hidden: Tensor) -> Tensor:
        """The backbone's hidden states float [..., hidden] -> [..., V]."""
        return self.llm.get_output_embeddings()(hidden)
