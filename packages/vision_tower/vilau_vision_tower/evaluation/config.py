"""What `vilau evaluate-tower` measures, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from vilau_common.errors import UserError


@dataclass(kw_only=True)
class TowerMetricsConfig:
    """How pictures are read, and what is measured of them.

    pictures: the first so many (null: all). threads: that decode pictures. max_bad_share: of pictures that cannot be
    read, above which the evaluation stops. seed: of what is drawn at random (KID's subsets).

    lpips: alex, vgg or null (not measured); lpips_weights: a local file with torchvision's weights of it.
    features: the network of rFID and KID: inception; clip, the one that the tower began as (not open_clip's); the
    directory of a transformers image model; or null (not measured). Numbers of any but Inception carry its name
    (rfid_clip).
    inception_weights: a local copy of torch-fidelity's file. kid_pictures: kept for KID, and kid_subset_size:
    compared at a time, at most.
    classes: a class list for zero-shot accuracy: `imagenet`; `folders`, the class folders' names (of a built-in world:
    "red circle" and so on, for pictures of one object); or a file with a name a line (or FOLDER<tab>name).
    templates: openai_imagenet, simple, article, or a file with a template a line.
    retrieval_pictures: the gallery of the retrieval, at most (0: none); retrieval_captions: of each, at most.
    near_misses: of a built-in world's pictures, so many at most are compared with captions that are almost true.
    grid: pictures on each sheet.
    """

    pictures: int | None = None
    batch_size: int = 64
    threads: int = 4
    max_bad_share: float = 0.01
    seed: int = 0
    lpips: str | None = "alex"
    lpips_weights: str | None = None
    features: str | None = "inception"
    inception_weights: str | None = None
    kid_pictures: int = 10_000
    kid_subset_size: int = 1000
    classes: str | None = None
    templates: str = "openai_imagenet"
    retrieval_pictures: int = 5000
    retrieval_captions: int = 5
    near_misses: int = 500
    grid: int = 32

    def __post_init__(self) -> None:
        least = {"pictures": 1, "batch_size": 1, "threads": 1, "kid_pictures": 2, "kid_subset_size": 2}
        least |= {
            "retrieval_captions": 1,
            "retrieval_pictures": 0,
            "near_misses": 0,
            "grid": 0,
            "max_bad_share": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise UserError(f"{name} must be {bound} or more, not {value}")


@dataclass(kw_only=True)
class EvaluateTowerConfig(TowerMetricsConfig):
    """tower_directory: a run of train-tower, or a saved tower. data: pictures, see the module `pictures`. directory:
    where results go."""

    tower_directory: str
    data: str
    directory: str
