"""`vilau evaluate-tower`: one pass over any pictures, in batches; the numbers, and pictures to look at.

    <directory>/results.json  not_computed.json  config.yaml  skipped.txt  first.png  worst.png  best.png

results.json is one flat object of numbers, not_computed.json says of each metric that is missing there why it is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vilau_common import atomic
from vilau_common.config import config_to_yaml
from vilau_common.errors import UserError
from vilau_common.images import to_tensor
from vilau_common.training.progress import TrainingProgress
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.codebook import CodebookMetrics
from vilau_vision_tower.evaluation.config import EvaluateTowerConfig
from vilau_vision_tower.evaluation.distributions import FeatureDistances
from vilau_vision_tower.evaluation.features import INCEPTION, build_features
from vilau_vision_tower.evaluation.grids import Grids
from vilau_vision_tower.evaluation.metric import EvaluatedBatch, Metric, NotComputed
from vilau_vision_tower.evaluation.perceptual import LpipsMetric
from vilau_vision_tower.evaluation.pictures import Decoding, EvaluatedPicture, PictureSource, open_pictures
from vilau_vision_tower.evaluation.pixels import PixelMetrics
from vilau_vision_tower.evaluation.retrieval import Retrieval
from vilau_vision_tower.evaluation.table import print_table
from vilau_vision_tower.evaluation.world import NearMisses, ReadBack
from vilau_vision_tower.evaluation.zero_shot import ZeroShot, read_classes, read_templates
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.tower import VisionTower, load_tower
from vilau_vision_tower.weights import WeightsMissing

PREFIX = "tower/"  # of the numbers, as in the results.json of a whole line

Metrics = dict[tuple[str, ...], Metric]
"""Metrics by the main numbers that they give, which name them where they are not computed."""


def evaluate_tower(config: EvaluateTowerConfig) -> dict[str, float]:
    """Evaluate, write <directory>, print the table, and return the numbers.

    Raises UserError for a tower, pictures, weights or lists that were named and are not there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = open_pictures(Path(config.data), config.pictures)
    tower = load_tower(config.tower_directory).to(device)
    metrics, lacking = build_metrics(config, tower, source, device)
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    pictures = Decoding(
        source,
        tower.image_size,
        limit=config.pictures,
        threads=config.threads,
        max_bad_share=config.max_bad_share,
    )
    evaluation = TowerEvaluation(tower, metrics, Grids(config.grid))
    with TrainingProgress("evaluate-tower", pictures.total, "images", visible=True) as progress:
        for reason in dict.fromkeys(lacking.values()):
            progress.say(reason)
        for batch in pictures.batches(config.batch_size):
            evaluation.add(batch)
            progress.advance(evaluation.pictures + len(pictures.skipped), len(batch), None)
    if not evaluation.pictures:
        raise UserError(f"data={config.data}: none of its {pictures.total} pictures can be read")
    numbers, more = evaluation.results()
    numbers["skipped_pictures"] = len(pictures.skipped)
    numbers = {f"{PREFIX}{name}": value for name, value in numbers.items()}
    lacking |= more
    evaluation.grids.save(directory)
    atomic.write_text(directory / "config.yaml", config_to_yaml(config))
    atomic.write_text(directory / "skipped.txt", "".join(f"{line}\n" for line in pictures.skipped))
    atomic.write_text(directory / "not_computed.json", json.dumps(lacking, indent=1) + "\n")
    atomic.write_text(directory / "results.json", json.dumps(numbers, indent=1) + "\n")
    print_table(numbers, lacking, directory)
    return numbers


def build_metrics(
    config: EvaluateTowerConfig, tower: VisionTower, source: PictureSource, device: torch.device
) -> tuple[Metrics, dict[str, str]]:
    """What the configuration asks for; and of what cannot be computed, its name and why."""
    place = Path(config.tower_directory)
    model = place / "model" if (place / "model").is_dir() else place
    kept_texts: list[TextEncoder] = []

    def texts() -> TextEncoder:
        if not (model / TEXT_ENCODER).is_dir():
            raise NotComputed(f"there is no text encoder in {model / TEXT_ENCODER}: texts cannot be compared")
        if not kept_texts:
            kept_texts.append(TextEncoder.from_pretrained(model / TEXT_ENCODER).to(device))
        return kept_texts[0]

    metrics: Metrics = {
        ("psnr", "ssim"): PixelMetrics(),
        ("codebook_usage",): CodebookMetrics(tower.codebook_size, tower.depth),
    }
    lacking: dict[str, str] = {}

    def want(names: tuple[str, ...], build: Callable[[], Metric]) -> None:
        try:
            metrics[names] = build()
        except (NotComputed, WeightsMissing) as error:
            lacking.update(dict.fromkeys(names, str(error)))

    if config.lpips is not None:
        network = config.lpips
        want((f"lpips_{network}",), lambda: LpipsMetric(network, config.lpips_weights, device))
    if config.features is not None:
        features = config.features
        suffix = "" if features == INCEPTION else f"_{Path(features).name}"
        want(
            (f"rfid{suffix}", f"kid{suffix}"),
            lambda: FeatureDistances(
                build_features(features, config.inception_weights, place, device),
                config.kid_pictures,
                config.kid_subset_size,
                config.seed,
            ),
        )
    if config.classes is not None:
        classes, templates = config.classes, read_templates(config.templates)
        want(("zero_shot_top1",), lambda: ZeroShot(texts(), read_classes(classes, source.folders), templates))
    if config.retrieval_pictures:
        want(("retrieval",), lambda: Retrieval(texts(), config.retrieval_pictures, config.retrieval_captions))
    if (world := source.world) is not None:
        want(("read_back_accuracy",), lambda: ReadBack(world, tower.image_size))
        if config.near_misses:
            want(("hard_negative_accuracy",), lambda: NearMisses(world, texts(), config.near_misses))
    return metrics, lacking


class TowerEvaluation:
    """A tower, what is measured of it, and the speed at which it works."""

    def __init__(self, tower: VisionTower, metrics: Metrics, grids: Grids) -> None:
        self.tower, self.metrics, self.grids = tower, metrics, grids
        self.pictures = 0
        self.encoding, self.decoding = Speed(tower.device), Speed(tower.device)

    @torch.inference_mode()
    def add(self, pictures: list[EvaluatedPicture]) -> None:
        """Take a batch in."""
        images = to_tensor(np.stack([picture.image for picture in pictures])).to(self.tower.device)
        with self.encoding.measured(len(pictures)):
            quantized = self.tower.quantize(images)
        with self.decoding.measured(len(pictures)):
            reconstructions = self.tower.decode(quantized.codes)
        batch = EvaluatedBatch(
            pictures, images, reconstructions, quantized.codes, self.tower.pool(quantized.z_q)
        )
        for metric in self.metrics.values():
            metric.update(batch)
        self.grids.update(batch)
        self.pictures += len(pictures)

    @torch.inference_mode()
    def results(self) -> tuple[dict[str, float], dict[str, str]]:
        """The numbers; and of those that turned out not to be computable, the name and why."""
        tower = self.tower
        numbers: dict[str, float] = {
            "pictures": self.pictures,
            "codebook_size": tower.codebook_size,
            "depth": tower.depth,
            "positions": math.prod(tower.grid),
            "bits_per_position": tower.depth * math.log2(tower.codebook_size),
        }
        lacking: dict[str, str] = {}
        for names, metric in self.metrics.items():
            try:
                numbers |= metric.result()
            except NotComputed as error:
                lacking.update(dict.fromkeys(names, str(error)))
        numbers["encode_pictures_per_second"] = self.encoding.per_second()
        numbers["decode_pictures_per_second"] = self.decoding.per_second()
        return numbers, lacking


class Speed:
    """Pictures a second, over all batches but the first, which warms up; over that one where there is no other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batches: list[tuple[int, float]] = []

    @contextmanager
    def measured(self, pictures: int) -> Iterator[None]:
        """Time the block, the device's work included."""
        start = self._now()
        yield
        self.batches.append((pictures, self._now() - start))

    def per_second(self) -> float:
        """The speed."""
        counted = self.batches[1:] or self.batches
        return sum(pictures for pictures, _ in counted) / sum(seconds for _, seconds in counted)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
