"""The image-text contrastive loss, as CLIP's softmax or SigLIP's sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from vilau_common.errors import UserError

# CLIP (Radford et al. 2021, section 2.5) caps the logits' scale so that training stays stable. SigLIP caps nothing: its
# released models have learned scales of 110 and more.
MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(kw_only=True)
class ContrastiveConfig:
    """kind: 'softmax' (CLIP) or 'sigmoid' (SigLIP); scale, bias: where the learned logit scale and (sigmoid's) bias
    start. null stands for the pretrained CLIP's own: the scale and bias that it has learned, and the kind of loss that
    goes with them."""

    kind: str | None = "softmax"
    scale: float | None = 10.0
    # SigLIP's start (section 3.2): most pairs are negatives, and the loss should know that from the first step.
    bias: float | None = -10.0

    def with_own(self, scale: float, bias: float | None) -> ContrastiveConfig:
        """The same with a CLIP's own values in place of null.

        scale: the factor itself, not its logarithm; bias: None for a CLIP without one, which softmax has trained.
        Raises UserError where the CLIP has no bias and sigmoid needs one.
        """
        kind = self.kind or ("softmax" if bias is None else "sigmoid")
        bias = bias if self.bias is None else self.bias
        if kind == "sigmoid" and bias is None:
            raise UserError(
                "contrastive.bias is null, which stands for the CLIP's own, but this CLIP has none: set it "
                "(SigLIP began at -10), or set contrastive.kind=softmax"
            )
        return replace(self, kind=kind, scale=scale if self.scale is None else self.scale, bias=bias)


class ContrastiveLoss(nn.Module):
    """Image-text contrastive loss over the joint batch of all ranks, with a learned scale and, for sigmoid, bias.

    A text that equals an image's own, token for token, is no negative of it: where captions repeat (class names, small
    worlds), images would be pushed away from what is true of them.

    Initialisation: log scale and bias from the configuration.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        if config.kind not in ("softmax", "sigmoid", None):
            raise UserError(f"contrastive.kind is {config.kind!r}; the choices are softmax and sigmoid")
        if config.kind is None or config.scale is None or (config.kind == "sigmoid" and config.bias is None):
            raise UserError(
                "contrastive.kind, scale or bias is null, which stands for a pretrained CLIP's own: a training from "
                "scratch needs values"
            )
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
        # In float32 whatever autocast does: at a scale of 100 bfloat16 rounds logits to halves.
        with torch.autocast(images.device.type, enabled=False):
            return self._loss(images.float(), texts.float(), negatives.float(), text_ids)

    def _loss(self, images: Tensor, texts: Tensor, negatives: Tensor, text_ids: Tensor) -> Tensor:
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
        """Keep softmax's scale within its bounds; called after each optimiser step, as open_clip does.

        Clamped in `forward` instead, a scale beyond the cap would get no gradient and never come back.
        """
        if self.kind == "softmax":
            self.log_scale.clamp_(max=MAX_LOGIT_SCALE)


def gather(vectors: Tensor) -> Tensor:
    """Rows of all ranks, float [ranks * B, C], with gradients to each; the same tensor in a single process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors
    return torch.cat(all_gather(vectors))
