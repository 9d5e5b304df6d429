"""What the tower's codes keep of a built-in world's test pictures, whose scenes are known: a verifier reads the
reconstructions, and captions are told from near misses.

`evaluate_on_world` takes a whole split and keeps all of its codes and reconstructions, for what is evaluated next;
`ReadBack` and `NearMisses` are the same as metrics among others of a pass over any pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vilau_common.data.split import Split
from vilau_common.data.worlds.base import World
from vilau_common.images import to_array, to_tensor
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.codebook import CodebookMetrics
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Mean, Metric, NotComputed
from vilau_vision_tower.losses import psnr
from vilau_vision_tower.tower import VisionTower

BATCH = 250
UNKNOWN = "no picture's whole scene is known"


@dataclass
class TowerEvaluation:
    metrics: dict[str, float]
    codes: Tensor  # int64 [N, h, w, D], of every picture of the split
    reconstructions: npt.NDArray[np.uint8]  # [N, H, W, 3]
    read_back_right: npt.NDArray[np.bool_]  # [N], whole picture; False where the scene is not known


@torch.inference_mode()
def evaluate_on_world(
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
    codebook = CodebookMetrics(tower.codebook_size, tower.depth)
    codebook.add(all_codes)
    metrics |= codebook.result()
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
        right += sum(told_apart(embeddings[chosen], embed_texts, groups))
    return right / max(len(indices), 1)


def told_apart(
    embeddings: Tensor, embed_texts: Callable[[list[str]], Tensor], groups: Sequence[list[str]]
) -> list[bool]:
    """Which pictures, float [B, C], are nearer to the first text of their group than to each of its other ones."""
    texts = embed_texts([text for group in groups for text in group])
    likenesses = [
        own @ embedding
        for embedding, own in zip(embeddings, texts.split([len(group) for group in groups]), strict=True)
    ]
    return [bool((likeness[0] > likeness[1:]).all()) for likeness in likenesses]  # a tie is no answer


class ReadBack(Metric):
    """read_back_accuracy of the pictures whose whole scene is known."""

    def __init__(self, world: World, image_size: int) -> None:
        """NotComputed: the verifier reads pictures of another size than the tower's."""
        if world.image_size != image_size:
            raise NotComputed(
                f"the verifier reads pictures of {world.image_size} pixels, but the tower draws {image_size}"
            )
        self.world = world
        self.right = Mean()

    def update(self, batch: EvaluatedBatch) -> None:
        known = _known(batch)
        if not known:
            return
        readings = self.world.read(to_array(batch.reconstructions[known]))
        truths = [batch.pictures[index].scene for index in known]
        pairs = zip(readings, truths, strict=True)
        self.right.add(torch.tensor([t is not None and self.world.same(r, t) for r, t in pairs]))

    def result(self) -> dict[str, float]:
        if not self.right.count:
            raise NotComputed(UNKNOWN)
        return {"read_back_accuracy": self.right.value()}


class NearMisses(Metric):
    """hard_negative_accuracy of the first pictures whose whole scene is known."""

    def __init__(self, world: World, text_encoder: TextEncoder, pictures: int) -> None:
        """pictures: so many at most."""
        self.world, self.text_encoder, self.pictures = world, text_encoder, pictures
        self.apart = Mean()

    def update(self, batch: EvaluatedBatch) -> None:
        chosen = _known(batch)[: self.pictures - self.apart.count]
        if not chosen:
            return
        groups = []
        for index in chosen:
            caption = batch.pictures[index].captions[0]
            groups.append([caption, *self.world.hard_negatives(batch.pictures[index].scene, caption)])
        self.apart.add(torch.tensor(told_apart(batch.embeddings[chosen], self.text_encoder.embed, groups)))

    def result(self) -> dict[str, float]:
        if not self.apart.count:
            raise NotComputed(UNKNOWN)
        return {"hard_negative_accuracy": self.apart.value()}


def _known(batch: EvaluatedBatch) -> list[int]:
    """Indices of the pictures whose whole scene is known."""
    return [index for index, picture in enumerate(batch.pictures) if picture.scene is not None]


def _batches(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
