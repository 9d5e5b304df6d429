"""The one next-token loss for text and image alike (VILA-U, 3.2), of cross-entropies computed in chunks.

A chunk's logits exist while its losses are computed; the backward pass computes them again, chunk by chunk. So their
memory does not grow with the batch: at K = 16,384, D = 4 and 8,192 positions they would take 2 GiB, three times over.

Counted are supervised tokens: a text token, or one of a visual position's D codes. The means are those of the joint
batch, of all processes and accumulated batches. The loop averages over both, so each batch's share is

    parts * (its sum of losses) / (the joint batch's tokens)        parts = processes * accumulated batches
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vilau_common import distributed
from vilau_common.errors import UserError
from vilau_unified_lm.packing import IGNORE, MixedSequence

NORMALIZATIONS = ("modality", "token")
MIB = 2**20


@dataclass(kw_only=True)
class LossConfig:
    """What the LM is trained on.

    normalization: modality, the mean over text tokens + the mean over visual tokens (VILA-U), or token, the mean over
    all of them. depth_share: of a batch's supervised visual positions, drawn anew at each step, the depth transformer
    runs on these alone. logits_mib: memory for the logits of one chunk, in MiB of float32.
    """

    normalization: str = "modality"
    depth_share: float = 1.0
    logits_mib: int = 128

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        if self.normalization not in NORMALIZATIONS:
            raise UserError(
                f"loss.normalization is {self.normalization!r}; it is one of {', '.join(NORMALIZATIONS)}"
            )
        if not 0 < self.depth_share <= 1:
            raise UserError(
                f"loss.depth_share is {self.depth_share}; a share above 0 and at most 1 is needed"
            )
        if self.logits_mib < 1:
            raise UserError(f"loss.logits_mib is {self.logits_mib}; at least 1 is needed")


@dataclass
class TokenLosses:
    """Cross-entropies of one batch."""

    text: Tensor  # float32 [T], of every supervised text token
    visual: Tensor  # float32 [M, D], of the codes of M supervised visual positions: all N, or a random share of them
    positions: int  # N


@dataclass
class StepTargets:
    """What all batches of an optimiser step have to predict, over all processes."""

    text: Tensor  # float32 [], tokens
    positions: Tensor  # float32 [], visual positions
    parts: int  # batches, over all processes

    @staticmethod
    def of(batches: Sequence[MixedSequence], device: torch.device) -> StepTargets:
        """Count this process's batches of one step and add up over processes; each must call it."""
        counts = [
            sum(int((targets != IGNORE).sum()) for targets in of_kind)
            for of_kind in zip(
                *((batch.text_targets, batch.visual_targets) for batch in batches), strict=True
            )
        ]
        # On the device, where dividing by them does not make the CPU wait.
        text, positions = distributed.sum_(torch.tensor(counts, device=device)).float()
        return StepTargets(text, positions, parts=len(batches) * distributed.world_size())


@dataclass
class UnifiedLoss:
    """One batch's share in the joint batch's losses: their mean over the batches of a step is the joint loss."""

    total: Tensor  # float32 [], what is minimised
    text: Tensor  # float32 [], mean over text tokens, 0 where there are none
    visual: Tensor  # float32 [], mean over visual tokens, 0 where there are none
    per_depth: Tensor  # float32 [D], the visual one by depth


def unified_loss(losses: TokenLosses, step: StepTargets, normalization: str) -> UnifiedLoss:
    """The objective of a batch among those of its step. normalization: as in `LossConfig`."""
    text = losses.text.sum() * (step.parts / step.text.clamp(min=1))
    # A random share stands for all of the batch's positions; the estimate is unbiased.
    weight = losses.positions / max(len(losses.visual), 1)
    per_depth = losses.visual.sum(dim=0) * (step.parts * weight / step.positions.clamp(min=1))
    visual = per_depth.mean()
    if normalization == "modality":
        total = text + visual
    else:
        visual_tokens = step.positions * losses.visual.shape[1]
        total = (text * step.text + visual * visual_tokens) / (step.text + visual_tokens).clamp(min=1)
    return UnifiedLoss(total=total, text=text, visual=visual, per_depth=per_depth)


def random_share(count: int, share: float, device: torch.device) -> Tensor:
    """Indices int64 of `share` of `count` things, at least one of them, from the run's random numbers."""
    return torch.randperm(count, device=device)[: max(1, round(share * count))]


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, classes: int, memory: int
) -> Tensor:
    """float32 [N], the cross-entropy of each target.

    head: hidden float [n, H] -> logits [n, classes]; targets int64 [N]; memory: bytes that a chunk's logits may take
    in float32. What fits into one chunk is computed plainly, and kept for the backward pass.
    """

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")

    rows = max(1, memory // (4 * classes))
    if len(hidden) <= rows:
        return losses(hidden, targets)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])
