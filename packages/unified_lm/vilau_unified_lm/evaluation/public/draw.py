"""Drawings of a set of prompts: made in batches and kept as files, then compared with their prompts and true pictures.

clip_score is 100 · cosine of picture and prompt in the model's own tower; it is compared with the same of other
prompts. Distances between the sets of drawings and true pictures are FID's, both brought to FID_SIDE pixels with
antialiasing, as clean-fid (Parmar et al. 2022) does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vilau_common.data.ahead import done_ahead
from vilau_common.images import sheet, to_tensor
from vilau_common.pictures import Picture
from vilau_common.training.progress import TrainingProgress
from vilau_unified_lm.evaluation.public.ask import LOADING_THREADS, picture_at
from vilau_unified_lm.evaluation.public.prompts import DrawnPrompt
from vilau_unified_lm.evaluation.public.scores import means
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.distributions import LEAST_PICTURES, Moments, frechet_distance
from vilau_vision_tower.evaluation.features import FeatureNetwork
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.tower import VisionTower

FID_SIDE = 299  # what the Inception of FID reads
READ_AT_ONCE = 32
SHEET_SIDE = 8


def draw(
    session: Session,
    name: str,
    prompts: Sequence[DrawnPrompt],
    directory: Path,
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
) -> None:
    """A file in `directory` for each prompt, those that are there not drawn again; prompt i has the seed seed + i."""
    numbered = list(enumerate(prompts))
    waiting = [(number, prompt) for number, prompt in numbered if not (directory / prompt.file).is_file()]
    done = len(prompts) - len(waiting)
    with TrainingProgress(f"evaluate {name}", len(prompts), "pictures", visible=True) as progress:
        if done:
            progress.say(f"{done} of {len(prompts)} pictures were drawn before")
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            seeds = [seed + number for number, _ in batch]
            pictures = session.draw([prompt.text for _, prompt in batch], sampling, seeds)
            for (_, prompt), picture in zip(batch, pictures, strict=True):
                _save(directory / prompt.file, picture)
            done += len(batch)
            progress.advance(done, len(batch), None)


@torch.inference_mode()
def clip_scores(
    tower: VisionTower, texts: TextEncoder, prompts: Sequence[DrawnPrompt], directory: Path
) -> tuple[dict[str, float], list[float]]:
    """clip_score, in all and by kind, and clip_score_other_prompts, of the same drawings with prompts that are not
    theirs; and the score of each drawing."""
    listed = list(dict.fromkeys(prompt.text for prompt in prompts))
    parts = [
        texts.embed(listed[start : start + READ_AT_ONCE]) for start in range(0, len(listed), READ_AT_ONCE)
    ]
    embedded = torch.cat(parts)
    places = {text: place for place, text in enumerate(listed)}
    own = torch.tensor([places[prompt.text] for prompt in prompts], device=embedded.device)
    files = [directory / prompt.file for prompt in prompts]
    drawn = []
    for batch in _batches(files, tower.image_size):
        images = to_tensor(np.stack(batch)).to(tower.device)
        drawn.append(tower.pool(tower.quantize(images).z_q))
    pictures = torch.cat(drawn)
    scores = 100 * (pictures * embedded[own]).sum(dim=1)
    numbers = means(
        ((prompt.kind, score) for prompt, score in zip(prompts, scores.tolist(), strict=True)), "clip_score"
    )
    if len(listed) > 1:  # the text half the list further on
        other = embedded[(own + len(listed) // 2) % len(listed)]
        numbers["clip_score_other_prompts"] = float(100 * (pictures * other).sum(dim=1).mean())
    return numbers, scores.tolist()


@torch.inference_mode()
def distance(
    network: FeatureNetwork, device: torch.device, prompts: Sequence[DrawnPrompt], directory: Path
) -> dict[str, float]:
    """fid with the network's suffix, of drawings whose prompts have true pictures. NotComputed: there are too few."""
    references = [prompt.reference for prompt in prompts if prompt.reference is not None]
    assert len(references) == len(prompts)
    if len(prompts) < LEAST_PICTURES:
        raise NotComputed(f"FID needs {LEAST_PICTURES} pictures at least, but there is {len(prompts)}")
    moments = []
    for files in (references, [directory / prompt.file for prompt in prompts]):
        moments.append(Moments())
        for pictures in _batches(files, FID_SIDE):
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
            moments[-1].add(network(pixels.to(device)))
    return {f"fid{network.suffix}": frechet_distance(*moments)}


def save_sheet(prompts: Sequence[DrawnPrompt], directory: Path, file: Path) -> None:
    """At most SHEET_SIDE² drawings on one sheet, in the order of the prompts, of each kind equally many."""
    by_kind: dict[str, list[DrawnPrompt]] = defaultdict(list)
    for prompt in prompts:
        by_kind[prompt.kind].append(prompt)
    share = max(1, SHEET_SIDE**2 // len(by_kind))
    chosen = [prompt for kind in by_kind.values() for prompt in kind[:share]][: SHEET_SIDE**2]
    pictures = [np.asarray(Image.open(directory / prompt.file).convert("RGB")) for prompt in chosen]
    rows = [pictures[start : start + SHEET_SIDE] for start in range(0, len(pictures), SHEET_SIDE)]
    sheet(rows).save(file)


def _batches(files: Sequence[Path], size: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    for picture in done_ahead(partial(picture_at, size=size, fit="crop"), files, LOADING_THREADS):
        batch.append(picture)
        if len(batch) == READ_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _save(path: Path, picture: Picture) -> None:
    """Whole or not at all: what is there counts as drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(picture).save(temporary, "PNG")
    temporary.replace(path)
