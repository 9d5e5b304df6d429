"""One next-token loss for text and image alike: mean over text tokens + mean over visual tokens (VILA-U, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class UnifiedLoss:
    total: Tensor  # float []
    text: Tensor  # float [], mean cross-entropy of the supervised text tokens, 0 where there are none
    visual: Tensor  # float [], mean cross-entropy of the supervised visual tokens, 0 where there are none
    per_depth: Tensor  # float [D], the visual one by depth


def unified_loss(
    text_logits: Tensor, text_targets: Tensor, visual_logits: Tensor, codes: Tensor
) -> UnifiedLoss:
    """text_logits float [T, V], text_targets int64 [T]; visual_logits float [N, D, K], codes int64 [N, D]."""
    text = text_loss(text_logits, text_targets)
    tokens = F.cross_entropy(visual_logits.float().transpose(1, 2), codes, reduction="none")
    per_depth = tokens.sum(dim=0) / max(len(codes), 1)
    visual = per_depth.mean()
    return UnifiedLoss(total=text + visual, text=text, visual=visual, per_depth=per_depth)


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, float []; 0 where there is nothing to predict. logits float [T, V], targets int64 [T]."""
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)
