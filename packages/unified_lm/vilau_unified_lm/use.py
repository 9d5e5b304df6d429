"""What `vilau ask`, `draw` and `reconstruct` do with a finished run."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from vilau_common.errors import UserError
from vilau_common.images import enlarged
from vilau_unified_lm.evaluation.language import MAX_TOKENS
from vilau_unified_lm.evaluation.run import SETTINGS, SamplingConfig
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session

# Of models that are no demo: as much as a picture's description takes.
DESCRIPTION_TOKENS = 512


def open_run(run: Path, dtype: str, device_map: str | None) -> Session:
    """The LM of a run: RUN/lm of a whole line, the LM's own run directory, or a checkpoint of the official code.

    dtype: 'auto' takes the stored one. device_map: None for the CPU, else as `from_pretrained` takes it.
    """
    if device_map is not None and device_map.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device-map is {device_map}, but torch finds no GPU here; leave it out for the CPU"
        )
    return Session.open(run, dtype=dtype, device_map=device_map)


def ask(*, run: Path, image: Path, question: str, dtype: str, device_map: str | None) -> str:
    """The answer to a question about a picture file."""
    session = open_run(run, dtype, device_map)
    limit = MAX_TOKENS if session.model.config.conversation == "plain" else DESCRIPTION_TOKENS
    codes = session.encode(session.open_image(image)[None])
    return session.answer(list(codes), [question], limit)[0]


def draw(
    *,
    run: Path,
    prompt: str,
    output: Path,
    count: int,
    seed: int,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    dtype: str,
    device_map: str | None,
) -> list[Path]:
    """`count` pictures of a prompt with the seeds seed, seed + 1, …; returns the files. None: as evaluated."""
    evaluated = evaluated_sampling(run)
    sampling = Sampling(
        guidance=evaluated.guidance if guidance is None else guidance,
        temperature=evaluated.temperature if temperature is None else temperature,
        top_k=evaluated.top_k if top_k is None else top_k,
        top_p=evaluated.top_p if top_p is None else top_p,
    )
    session = open_run(run, dtype, device_map)
    pictures = session.draw([prompt] * count, sampling, [seed + index for index in range(count)])
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{index}") for index in range(count)]
    for path, picture in zip(paths, pictures, strict=True):
        enlarged(picture).save(path)
    return paths


def reconstruct(*, run: Path, image: Path, output: Path, dtype: str, device_map: str | None) -> Path:
    """A picture file through the tower's codes and back; the result goes to `output`."""
    session = open_run(run, dtype, device_map)
    enlarged(session.reconstruct(session.open_image(image)[None])[0]).save(output)
    return output


def evaluated_sampling(run: Path) -> SamplingConfig:
    """The sampling settings that the run was evaluated with; VILA-U's where it was not evaluated."""
    path = run / "evaluation" / SETTINGS
    saved = OmegaConf.load(path).sampling if path.is_file() else {}
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SamplingConfig), saved))
    assert isinstance(merged, SamplingConfig)
    return merged
