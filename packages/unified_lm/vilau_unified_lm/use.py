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

# Of models that are no demo: as much as a picture's description takes.
DESCRIPTION_TOKENS = 512


def ask(*, run: Path, image: Path, question: str, dtype: str = "auto", device_map: str | None = None) -> str:
    """The answer to a question about a picture file, of a unified LM, a VILA or a released checkpoint."""
    if is_vila(run):
        baseline = VilaSession.open(run)
        shown = open_image(image, baseline.model.image_size)
        return baseline.answer([shown], [question], MAX_TOKENS)[0]
    session = Session.open(run, dtype=dtype, device_map=device_map)
    limit = MAX_TOKENS if session.model.config.conversation == "plain" else DESCRIPTION_TOKENS
    codes = session.encode(session.open_image(image)[None])
    return session.answer(list(codes), [question], limit)[0]


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
    dtype: str,
    device_map: str | None,
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
    session = Session.open(run, dtype=dtype, device_map=device_map)
    pictures = session.draw([prompt] * count, sampling, [seed + index for index in range(count)], negative)
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{index}") for index in range(count)]
    for path, picture in zip(paths, pictures, strict=True):
        enlarged(picture).save(path)
    return paths


def reconstruct(
    *, run: Path, image: Path, output: Path, dtype: str = "auto", device_map: str | None = None
) -> Path:
    """A picture file through the tower's codes and back; the result goes to `output`."""
    session = Session.open(run, dtype=dtype, device_map=device_map)
    enlarged(session.reconstruct(session.open_image(image)[None])[0]).save(output)
    return output


def evaluated_sampling(run: Path) -> SamplingConfig:
    """The sampling settings that the run was evaluated with; VILA-U's where it was not evaluated."""
    evaluated = evaluated_settings(run)
    return SamplingConfig() if evaluated is None else evaluated.sampling
