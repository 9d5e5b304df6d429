"""Image-text retrieval: R@k, the share of queries that find one of their own among the k nearest.

The gallery is the first pictures with captions, of each so many captions. Equal captions are one text, which belongs to
all of their pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric, NotComputed, shares_within

TOP = (1, 5, 10)
QUERIES_AT_ONCE = 1024
TEXTS_AT_ONCE = 512


class Retrieval(Metric):
    """retrieval_image_to_text_r1, …_r5, …_r10, the same text_to_image, and the size of the gallery."""

    def __init__(self, text_encoder: TextEncoder, pictures: int, captions: int) -> None:
        """pictures: so many at most are the gallery; captions: of each at most."""
        self.text_encoder = text_encoder
        self.pictures, self.captions = pictures, captions
        self.images: list[Tensor] = []
        self.texts: dict[str, int] = {}
        self.pairs: list[tuple[int, int]] = []  # picture, text

    def update(self, batch: EvaluatedBatch) -> None:
        for picture, embedding in zip(batch.pictures, batch.embeddings.cpu(), strict=True):
            if not picture.captions or len(self.images) == self.pictures:
                continue
            for caption in dict.fromkeys(picture.captions[: self.captions]):
                self.pairs.append((len(self.images), self.texts.setdefault(caption, len(self.texts))))
            self.images.append(embedding.clone())

    def result(self) -> dict[str, float]:
        if not self.images:
            raise NotComputed("retrieval needs captions, but no picture has one")
        listed = list(self.texts)
        parts = [listed[i : i + TEXTS_AT_ONCE] for i in range(0, len(listed), TEXTS_AT_ONCE)]
        texts = torch.cat([self.text_encoder.embed(part).cpu() for part in parts])
        images = torch.stack(self.images)
        numbers: dict[str, float] = {"retrieval_pictures": len(images), "retrieval_texts": len(texts)}
        turned = [(text, image) for image, text in self.pairs]
        for name, found in (
            ("image_to_text", best_ranks(images, texts, self.pairs)),
            ("text_to_image", best_ranks(texts, images, turned)),
        ):
            for top, share in zip(TOP, shares_within([found], TOP), strict=True):
                numbers[f"retrieval_{name}_r{top}"] = share
        return numbers


def best_ranks(queries: Tensor, gallery: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """int64 [queries]: how many that are not a query's own are as near to it as its nearest own, or nearer.

    queries, gallery: unit vectors float [N, C], [M, C]; pairs: (query, its own in the gallery), one at least for each.
    """
    found = []
    query, own = torch.tensor(pairs).T
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        scores = queries[start : start + QUERIES_AT_ONCE] @ gallery.T
        here = (query >= start) & (query < start + QUERIES_AT_ONCE)
        mine = torch.zeros_like(scores, dtype=torch.bool)
        mine[query[here] - start, own[here]] = True
        best = scores.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
        # A tie is lost: a model that tells nothing apart finds nothing.
        found.append((~(scores < best) & ~mine).sum(dim=1))
    return torch.cat(found)
