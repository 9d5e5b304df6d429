"""Training the demo's LM with packed rows and codes made ahead, against padded rows and the tower run at each step.

    make bench BENCH=lm_throughput [ARGS="--rounds 5 data.row_length=160"]      settings of train-lm

Every way takes the same documents of the same mixture through the training loop, loader and optimiser included:
    packed      rows of several documents, codes from shards
    padded      a document a row, every question in a row of its own: without a mask of branches nothing else keeps
                questions from seeing each other. Rows as long as the longest; pictures from shards, through the tower
    documents   the same, but a picture's questions in one row, kept apart by the mask of branches
Rates count supervised tokens, the same ones in all three. Bar: packed at 2.5 times the rate of padded. Beside it, as
what nothing can beat, stands the rate of packed rows without any padding. Closes with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vilau_common.config import load_config
from vilau_common.data.encoder import SampleEncoder
from vilau_common.data.fields import CODES_FIELD, image_field
from vilau_common.data.loader import build_loader
from vilau_common.data.prepare import SCHEMA_GROUPS as PREPARE_GROUPS
from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.source import Source
from vilau_common.images import to_tensor
from vilau_common.training import StepOutput
from vilau_common.training.environment import torch_settings
from vilau_common.training.state import TrainingState
from vilau_unified_lm.build import build_lm
from vilau_unified_lm.data import DocumentEncoder, document_loader
from vilau_unified_lm.document import Document, ImageSegment
from vilau_unified_lm.packing import IGNORE, MixedSequence, pack
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import SCHEMA_GROUPS as LM_GROUPS
from vilau_unified_lm.train import TrainLmConfig
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tokenize import CodesOrigin, TokenizeConfig, tokenize, tower_fingerprint
from vilau_vision_tower.tower import VisionTower
from vilau_vision_tower.train import SCHEMA_GROUPS, TrainTowerConfig
from vilau_vision_tower.train_clip import TrainClipConfig

PICTURES = 4_000  # in the data set
STEPS = 8  # in a row of one way, in a round
SETTLE = 6  # steps before them, not counted: the batches that were made while nobody asked
IDLE_SHARE, IDLE_SECONDS, PATIENCE = 0.1, 0.5, 60.0  # of a core, in so long a time; seconds
BAR = 2.5


@dataclass
class Line:
    """What the stages before the LM leave behind, with a tower of random weights; sizes are the demo's."""

    config: TrainLmConfig
    data: Path
    tower: VisionTower
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary

    def task(self) -> UnifiedTask:
        """A new LM."""
        lm = build_lm(self.config.lm, self.tower, self.vocabulary)
        return UnifiedTask(lm, self.tokenizer, self.config.loss)


def build(directory: Path, overrides: Sequence[str]) -> Line:
    """Pictures and their codes in `directory`. overrides: settings of train-lm."""
    config = load_config("train_lm", ["experiment=scenes/lm", *overrides], TrainLmConfig, groups=LM_GROUPS)
    prepared = load_config(
        "prepare",
        ["experiment=scenes/prepare", f"directory={directory / 'data'}"],
        PrepareConfig,
        groups=PREPARE_GROUPS,
    )
    source = dataclasses.replace(prepared.source, train_count=PICTURES, test_count=1)
    prepared = dataclasses.replace(prepared, source=source)
    tower = random_tower()
    tower.save_pretrained(directory / "tower" / "model")
    codes = TokenizeConfig(
        tower_directory=str(directory / "tower"),
        data=prepared.directory,
        directory=str(directory / "codes"),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(prepared)
        tokenize(codes)
    tokenizer = load_text_tokenizer(directory / "data" / "tokenizer")
    add_special_tokens(tokenizer)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, tower.codebook_size, tower.depth)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, directory=codes.directory))
    fingerprint = tower_fingerprint(codes.tower_directory)
    return Line(config, directory / "data", tower, fingerprint, tokenizer, vocabulary)


def random_tower() -> VisionTower:
    """The demo's tower, its codebooks random."""
    config = load_config("train_tower", ["experiment=scenes/tower"], TrainTowerConfig, groups=SCHEMA_GROUPS)
    clip = load_config("train_clip", ["experiment=scenes/clip"], TrainClipConfig).clip
    vision = {
        "hidden_size": clip.image.width,
        "intermediate_size": 4 * clip.image.width,
        "num_hidden_layers": clip.image.layers,
        "num_attention_heads": clip.image.heads,
        "image_size": config.data.image_size,
        "patch_size": clip.patch_size,
    }
    tower = VisionTower(
        VisionTowerConfig(
            vision_config=vision,
            quantizer=dataclasses.asdict(config.tower.quantizer),
            decoder=dataclasses.asdict(config.tower.decoder),
        )
    )
    tower.quantizer.set_codebooks(torch.randn_like(tower.quantizer.codebooks))
    return tower.eval()


# --- padded rows ------------------------------------------------------------------------------------------------


@dataclass
class PaddedBatch:
    sequence: MixedSequence  # a document a row; its codes are not known yet
    images: Tensor  # float32 [S, 3, H, W]
    picture: Tensor  # int64 [rows that show one], which of the images

    def pin_memory(self) -> PaddedBatch:
        """The loader calls it where there is an accelerator."""
        return PaddedBatch(self.sequence.pin_memory(), self.images.pin_memory(), self.picture.pin_memory())

    def to(self, device: torch.device) -> PaddedBatch:
        """The same on another device."""
        return PaddedBatch(self.sequence.to(device), self.images.to(device), self.picture.to(device))


@dataclass
class Pictured:
    documents: list[Document]
    image: np.ndarray  # uint8 [H, W, 3]


class PaddedEncoder(SampleEncoder[Pictured, Pictured, PaddedBatch]):
    """Stored pictures -> documents as the LM's own encoder makes them, one a row.

    one_branch: every branch of a document becomes one of its own, with the trunk before it.
    """

    def __init__(self, line: Line, one_branch: bool) -> None:
        self.inner = DocumentEncoder(line.config.data, line.tokenizer, line.vocabulary)
        self.one_branch, self.depth = one_branch, line.vocabulary.depth
        file = io.BytesIO()
        np.save(file, np.zeros((1, *line.tower.grid, self.depth), np.uint16))
        self.no_codes = file.getvalue()

    def encode(self, key: str, fields: Mapping[str, bytes], form: str, rng: np.random.Generator) -> Pictured:
        document = self.inner.encode(key, {**fields, CODES_FIELD: self.no_codes}, form, rng)
        return Pictured(branches(document) if self.one_branch else [document], image_field(fields))

    def collate(self, rows: Sequence[Pictured]) -> PaddedBatch:
        documents = [document for row in rows for document in row.documents]
        shows = [
            index
            for index, row in enumerate(rows)
            for document in row.documents
            if any(isinstance(segment, ImageSegment) for segment in document.segments)
        ]
        return PaddedBatch(
            pack([[document] for document in documents], max(map(len, documents)), self.depth),
            torch.cat([to_tensor(row.image[None]) for row in rows]),
            torch.tensor(shows),
        )


def branches(document: Document) -> list[Document]:
    """Each branch with the trunk, as documents without branches; the document where it has none."""
    numbers = sorted({segment.branch for segment in document.segments} - {0})
    return [
        Document(
            tuple(dataclasses.replace(s, branch=0) for s in document.segments if s.branch in (0, number))
        )
        for number in numbers or [0]
    ]


class TowerEachStepTask(UnifiedTask):
    """The tower makes the codes when they are needed."""

    def before_step(self, batches: Sequence[PaddedBatch]) -> None:
        super().before_step([batch.sequence for batch in batches])

    def training_step(self, network: nn.Module, batch: PaddedBatch, step: int) -> StepOutput:
        with torch.no_grad():
            codes = self.model.image_tokenizer.encode(batch.images).flatten(1, 2)
        sequence = dataclasses.replace(batch.sequence, codes=codes[batch.picture].flatten(0, 1))
        return super().training_step(network, sequence, step)

    def batch_size(self, batch: PaddedBatch) -> int:
        return super().batch_size(batch.sequence)


# --- measuring --------------------------------------------------------------------------------------------------


class Way:
    """One way to train: what its steps take, and what they take in."""

    def __init__(self, task: UnifiedTask, loader: object, line: Line) -> None:
        self.loader = Counted(loader, line.vocabulary.depth)
        never_ending = dataclasses.replace(line.config.training, steps=10**9)
        self.state = TrainingState(task, self.loader, never_ending, seed=0)
        task.train_mode()
        self.rates: list[float] = []
        self.seconds: list[float] = []

    def measure(self) -> None:
        """Some steps in a row."""
        for _ in range(SETTLE):
            self.state.advance()
        before, start = self.loader.supervised, time.perf_counter()
        for _ in range(STEPS):
            self.state.advance()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
        self.rates.append((self.loader.supervised - before) / taken)
        self.seconds.append(taken / STEPS)


def wait_for_loaders() -> None:
    """Until no loader works ahead: the cores shall be those of the way that is measured, its loader included."""
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        workers = psutil.Process().children(recursive=True)
        before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
        time.sleep(IDLE_SECONDS)
        if sum(sum(worker.cpu_times()[:2]) for worker in workers) - before < IDLE_SHARE * IDLE_SECONDS:
            return
    raise RuntimeError(f"the loaders do not come to rest in {PATIENCE:.0f} seconds")


class Counted:
    """A loader that counts what passes."""

    def __init__(self, loader: object, depth: int) -> None:
        self.loader, self.depth = loader, depth
        self.supervised = self.filled = self.places = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> object:
        batch = next(self.loader)
        sequence = batch.sequence if isinstance(batch, PaddedBatch) else batch
        self.supervised += int((sequence.text_targets != IGNORE).sum())
        self.supervised += self.depth * int((sequence.visual_targets != IGNORE).sum())
        self.filled += int((sequence.document_ids > 0).sum())
        self.places += sequence.document_ids.numel()
        return batch

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None:
        raise NotImplementedError


def ways_of(line: Line, logs: Path) -> dict[str, Way]:
    """All three; their steps take about as many documents."""
    data = line.config.data
    origin = CodesOrigin.of(line.tower, line.fingerprint)
    packed = document_loader(data, line.tokenizer, line.vocabulary, origin, 0, logs)
    first = [next(packed) for _ in range(10)]
    documents = sum(int(batch.document_ids.amax(dim=1).sum()) for batch in first) / len(first)
    loader = dataclasses.replace(data.loader, batch_size=round(documents), packing_buffer=0)
    sources = [
        Source(path=str(line.data / "train"), weight=weight, form=form)
        for form, weight in vars(data.mixture).items()
        if weight > 0
    ]
    padded = {
        name: build_loader(sources, PaddedEncoder(line, split), loader, seed=0, log_directory=logs)
        for name, split in (("padded", True), ("documents", False))
    }
    return {
        "packed": Way(line.task(), packed, line),
        **{
            name: Way(
                TowerEachStepTask((plain := line.task()).model, plain.tokenizer, plain.loss), batches, line
            )
            for name, batches in padded.items()
        },
    }


def main() -> None:
    """Measure by turns, so that a noisy machine disturbs all alike, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="settings of train-lm, key=value")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as directory:
        line = build(Path(directory), arguments.overrides)
        with torch_settings(line.config.training):
            ways = ways_of(line, Path(directory))
            for _ in range(arguments.rounds):
                for way in ways.values():
                    wait_for_loaders()
                    way.measure()
            for way in ways.values():
                way.state.close()
    results: dict[str, float] = {}
    for name, way in ways.items():
        rate, step = statistics.median(way.rates), statistics.median(way.seconds)
        fill = way.loader.filled / way.loader.places
        results |= {f"rate/{name}": rate, f"fill/{name}": fill, f"seconds/{name}": step}
        print(
            f"{name:10} {rate:8.0f} supervised tokens/s, {step * 1e3:6.0f} ms a step, {fill:.1%} of places filled"
        )
    for name in ("padded", "documents"):
        results[f"packed_over_{name}"] = results["rate/packed"] / results[f"rate/{name}"]
    results["rate/floor"] = results["rate/packed"] / results["fill/packed"]
    print(
        f"packed / padded {results['packed_over_padded']:.2f} (bar {BAR}), packed / documents "
        f"{results['packed_over_documents']:.2f}; rows without padding: {results['rate/floor']:.0f} tokens/s"
    )
    print(json.dumps({"threads": torch.get_num_threads(), "device": str(line.tower.device), **results}))


if __name__ == "__main__":
    main()
