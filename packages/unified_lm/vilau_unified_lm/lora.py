"""LoRA (Hu et al. 2021, arXiv 2106.09685) of the backbone, through PEFT: the alternative to tuning all of it.

    W x  becomes  W x + (alpha / rank) B A x        W frozen; A random, B zero at first

The rows of the unified LM's special tokens are new to a backbone, so they are trained whole. VILA's authors found full
tuning the better one (Lin et al. 2023, section 3); this costs less memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vilau_common.errors import UserError

ADAPTER = "adapter"


@dataclass(kw_only=True)
class LoraConfig:
    """rank: of the adapters; 0: none, the backbone itself is trained. alpha: their scale, times rank.

    target_modules: names of linear layers, such as q_proj; empty: all of the backbone's but its head.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if self.rank < 0:
            raise UserError(f"lm.lora.rank is {self.rank}; it is 0 (no adapters) or more")
        if self.alpha < 1:
            raise UserError(f"lm.lora.alpha is {self.alpha}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lm.lora.dropout is {self.dropout}; a share lies in [0, 1)")


class Adapters:
    """The adapters inside a backbone, whose own weights are frozen from now on."""

    def __init__(self, llm: PreTrainedModel, config: LoraConfig, token_ids: Sequence[int]) -> None:
        """Puts adapters into `llm`, in place. token_ids: whose embeddings are trained whole, in the head as well.

        Raises UserError where no layer has a name of config.target_modules.
        """
        import peft  # seconds at every start, which no other training needs

        rows = {_name_of(llm, llm.get_input_embeddings()): list(token_ids)}
        head = llm.get_output_embeddings()
        if head.weight is not llm.get_input_embeddings().weight:
            rows[_name_of(llm, head)] = list(token_ids)
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules) or "all-linear",
            trainable_token_indices=rows,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, at a name that PEFT reads
                self._peft = peft.get_peft_model(llm, settings)
        except ValueError as error:
            raise UserError(
                f"lm.lora.target_modules {list(config.target_modules)} does not fit the backbone: "
                f"{str(error).strip().splitlines()[0]}"
            ) from None

    def save(self, directory: Path) -> None:
        """Writes what PEFT's `PeftModel.from_pretrained` reads."""
        # Its rows of special tokens are among the adapters; the whole embedding need not be.
        self._peft.save_pretrained(str(directory), save_embedding_layers=False)

    def merge(self) -> None:
        """Add the adapters to the weights that they adapt, in place: the backbone is transformers' own again.

        In place, since a copy of a large backbone may not fit beside it.
        """
        self._peft.merge_and_unload()


def _name_of(llm: PreTrainedModel, wanted: Any) -> str:
    return next(name for name, module in llm.named_modules() if module is wanted)
