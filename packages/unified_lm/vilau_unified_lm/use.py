"""What `vilau ask`, `draw` and `reconstruct` do with a finished run."""

from __future__ import annotations

from pathlib import Path

from vilau_common.images import enlarged, open_image
from vilau_unified_lm.evaluation.language import MAX_TOKENS
from vilau_unified_lm.evaluation.run import SamplingConfig, evaluated_settings
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session
from vilau_unified_lm.vila.model import is_vila
from vilau_unified_lm.vila.session import VilaSession


def lm_directory(run: Path) -> Path:
    """RUN/lm of a whole line, or the LM's own run directory."""
    return run / "lm" if (run / "lm").is_dir() else run


def open_run(run: Path, device: str = "cpu", compile: str = "none") -> Session:
    """The LM of a run. compile: as the engine's."""
    return Session.open(lm_directory(run), device, compile)


def ask(*, run: Path, image: Path, question: str) -> str:
    """The answer to a question about a picture file, of a unified LM or a VILA."""
    if is_vila(run):
        baseline = VilaSession.open(run)
        shown = open_image(image, baseline.model.image_size)
        return baseline.answer([shown], [question], MAX_TOKENS)[0]
    session = open_run(run)
    picture = open_image(image, session.image_tokenizer.image_size)
    return session.answer(list(session.encode(picture[None])), [question], MAX_TOKENS)[0]


def draw(
    *,
    run: Path,
    prompt: str,
    negative: str,
    output: Path,
    count: int,
    seed: int,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> list[Path]:
    """`count` pictures of a prompt with the seeds seed, seed + 1, …; returns the files.

    negative: what guidance leads away from; empty: the blank prompt. None: as evaluated.
    """
    evaluated = evaluated_sampling(run)
    sampling = Sampling(
        guidance=evaluated.guidance if guidance is None else guidance,
        temperature=evaluated.temperature if temperature is None else temperature,
        top_k=evaluated.top_k if top_k is None else top_k,
        top_p=evaluated.top_p if top_p is None else top_p,
    )
    session = open_run(run)
    pictures = session.draw([prompt] * count, sampling, [seed + index for index in range(count)], negative)
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{index}") for index in range(count)]
    for path, picture in zip(paths, pictures, strict=True):
        enlarged(picture).save(path)
    return paths


def reconstruct(*, run: Path, image: Path, output: Path) -> Path:
    """A picture file through the tower's codes and back; the result goes to `output`."""
    session = open_run(run)
    picture = open_image(image, session.image_tokenizer.image_size)
    enlarged(session.reconstruct(picture[None])[0]).save(output)
    return output


def evaluated_sampling(run: Path) -> SamplingConfig:
    """The sampling settings that the run was evaluated with; VILA-U's where it was not evaluated."""
    evaluated = evaluated_settings(run)
    return SamplingConfig() if evaluated is None else evaluated.sampling
