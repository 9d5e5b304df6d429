"""The image-text contrastive loss, as CLIP's softmax or SigLIP's sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from vilau_common.errors import UserError

# CLIP (Radford et al. 2021, section 2.5) caps the logits' scale so that training stays stable.
MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(kw_only=True)
class ContrastiveConfig:
    """kind: 'softmax' (CLIP) or 'sigmoid' (SigLIP); scale, bias: where the learned logit scale and
    (sigmoid's) bias start."""

    kind: str = "softmax"
    scale: float = 10.0
    # SigLIP's start (section 3.2): most pairs are negatives, and the loss should know that from the first step.
    bias: float = -10.0


class ContrastiveLoss(nn.Module):
    """Image-text contrastive loss over the joint batch of all ranks, with a learned scale and, for sigmoid, bias.

    A text that equals an image's own, token for token, is no negative of it: where captions repeat (class names, small
    worlds), images would be pushed away from what is true of them.

    Initialisation: log scale and bias from the configuration.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        if config.kind not in ("softmax", "sigmoid"):
            raise UserError(f"contrastive.kind is {config.kind!r}; the choices are softmax and sigmoid")
        self.kind = config.kind
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        # A parameter that no gradient reaches would stop a training on several processes.
        self.bias = nn.Parameter(torch.tensor(config.bias)) if config.kind == "sigmoid" else None
        self.cap_scale()

    def forward(self, images: Tensor, texts: Tensor, negatives: Tensor, text_ids: Tensor) -> Tensor:
        """Unit vectors float [B, C], row i of `images` belonging to row i of `texts` -> scalar loss.

        negatives: float [M, C], texts that belong to no image (NegCLIP; Yuksekgonul et al. 2023); M may be 0.
        text_ids: int64 [B + M, L], the tokens of texts and negatives.
        """
        ids = torch.cat([gather(text_ids[: len(texts)]), gather(text_ids[len(texts) :])])
        images, texts, negatives = gather(images), gather(texts), gather(negatives)
        size = images.shape[0]
        number = torch.unique(ids, dim=0, return_inverse=True)[1]
        same = (number[:size, None] == number).fill_diagonal_(False)
        logits = images @ torch.cat([texts, negatives]).T * self.log_scale.exp()
        if self.kind == "softmax":
            target = torch.arange(size, device=logits.device)
            logits = logits.masked_fill(same, -torch.inf)
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :size].T, target)) / 2
        assert self.bias is not None
        # SigLIP (Zhai et al. 2023, equation 1): every pair is its own yes-or-no question.
        signs = 2 * torch.eye(size, logits.shape[1], device=logits.device) - 1
        return -F.logsigmoid(signs * (logits + self.bias)).masked_fill(same, 0).sum(dim=-1).mean()

    @torch.no_grad()
    def cap_scale(self) -> None:
        """Keep the scale within its bounds; called after each optimiser step, as open_clip does.

        Clamped in `forward` instead, a scale beyond the cap would get no gradient and never come back.
        """
        self.log_scale.clamp_(max=MAX_LOGIT_SCALE)


def gather(vectors: Tensor) -> Tensor:
    """Rows of all ranks, float [ranks * B, C], with gradients to each; the same tensor in a single process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors
    return torch.cat(all_gather(vectors))
