"""What the tower's codes keep of pixels and of meaning, on pictures it was never trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vilau_common.data.split import Split
from vilau_common.data.worlds.base import World
from vilau_common.images import to_array, to_tensor
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.losses import psnr
from vilau_vision_tower.tower import VisionTower

BATCH = 250


@dataclass
class TowerEvaluation:
    metrics: dict[str, float]
    codes: Tensor  # int64 [N, h, w, D], of every picture of the split
    reconstructions: npt.NDArray[np.uint8]  # [N, H, W, 3]
    read_back_right: npt.NDArray[np.bool_]  # [N], whole picture; False where the scene is not known


@torch.inference_mode()
def evaluate_tower(
    tower: VisionTower, text_encoder: TextEncoder, world: World, split: Split, hard_negative_pictures: int
) -> TowerEvaluation:
    """PSNR, what the verifier reads off reconstructions, captions told from near misses, codebook usage.

    hard_negative_pictures: so many pictures at most are compared with their captions.
    """
    codes, embeddings, reconstructions, ratios = [], [], [], []
    for batch in _batches(split.images):
        images = to_tensor(batch).to(tower.device)
        quantized = tower.quantize(images)
        decoded = tower.decode(quantized.codes)
        codes.append(quantized.codes)
        embeddings.append(tower.pool(quantized.z_q))
        reconstructions.append(to_array(decoded))
        ratios.append(psnr(images, decoded))
    all_codes, pictures = torch.cat(codes), np.concatenate(reconstructions)
    known = split.known()
    right = np.zeros(len(pictures), bool)
    right[known] = scenes_right(world, pictures[known], split, known)
    metrics = {
        "psnr": float(torch.cat(ratios).mean()),
        "read_back_accuracy": float(right[known].mean()),
        "hard_negative_accuracy": hard_negative_accuracy(
            torch.cat(embeddings), text_encoder.embed, world, split, known[:hard_negative_pictures]
        ),
    }
    for depth in range(tower.depth):
        used = torch.unique(all_codes[..., depth]).numel()
        metrics[f"codebook_usage_d{depth}"] = used / tower.codebook_size
    return TowerEvaluation(metrics, all_codes.cpu(), pictures, right)


def scenes_right(
    world: World, pictures: npt.NDArray[np.uint8], split: Split, indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the verifier reads each picture as the split's scene of that index, bool [len(indices)]."""
    readings = world.read(pictures)
    truths = [split.scenes[index] for index in indices]
    return np.array([t is not None and world.same(r, t) for r, t in zip(readings, truths, strict=True)])


def hard_negative_accuracy(
    embeddings: Tensor,
    embed_texts: Callable[[list[str]], Tensor],
    world: World,
    split: Split,
    indices: npt.NDArray[np.int64],
) -> float:
    """Share of pictures nearer to their own caption than to each with one attribute changed.

    embeddings: unit vectors float [N, C] of all pictures; embed_texts: captions -> unit vectors float [M, C].
    """
    right = 0
    for start in range(0, len(indices), BATCH):
        chosen = indices[start : start + BATCH]
        groups = []
        for index in chosen:
            caption = split.captions[index][0]
            groups.append([caption, *world.hard_negatives(split.scenes[index], caption)])
        texts = embed_texts([text for group in groups for text in group])
        for index, own in zip(chosen, texts.split([len(group) for group in groups]), strict=True):
            likeness = own @ embeddings[index]
            right += bool((likeness[0] > likeness[1:]).all())  # a tie is no answer
    return right / max(len(indices), 1)


def _batches(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
