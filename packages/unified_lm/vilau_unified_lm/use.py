"""What `vilau ask`, `draw` and `reconstruct` do with a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from vilau_common.images import enlarged
from vilau_unified_lm.evaluation.language import MAX_TOKENS
from vilau_unified_lm.evaluation.run import SETTINGS, SamplingConfig
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session


# Of the models that are no demo: as much as a picture's description takes.
DESCRIPTION_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and how it is loaded. run: a run, or a checkpoint of the official code. dtype: 'auto' takes the
    stored one. device_map: None for the CPU, else as `from_pretrained` takes it ('auto', 'cuda', …)."""

    run: Path
    dtype: str = "auto"
    device_map: str | None = None

    def open(self) -> Session:
        """Raises UserError where there is no such model."""
        return Session.open(self.run, self.dtype, self.device_map)


def ask(*, model: Model, image: Path, question: str) -> str:
    """The answer to a question about a picture file."""
    session = model.open()
    codes = session.encode(session.open_image(image)[None])
    limit = MAX_TOKENS if session.model.config.conversation == "plain" else DESCRIPTION_TOKENS
    return session.answer(list(codes), [question], limit)[0]


def draw(
    *,
    model: Model,
    prompt: str,
    output: Path,
    count: int,
    seed: int,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> list[Path]:
    """`count` pictures of a prompt with the seeds seed, seed + 1, …; returns the files. None: as evaluated."""
    evaluated = evaluated_sampling(model.run)
    sampling = Sampling(
        guidance=evaluated.guidance if guidance is None else guidance,
        temperature=evaluated.temperature if temperature is None else temperature,
        top_k=evaluated.top_k if top_k is None else top_k,
        top_p=evaluated.top_p if top_p is None else top_p,
    )
    session = model.open()
    pictures = session.draw([prompt] * count, sampling, [seed + index for index in range(count)])
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{index}") for index in range(count)]
    for path, picture in zip(paths, pictures, strict=True):
        enlarged(picture).save(path)
    return paths


def reconstruct(*, model: Model, image: Path, output: Path) -> Path:
    """A picture file through the tower's codes and back; the result goes to `output`."""
    session = model.open()
    enlarged(session.reconstruct(session.open_image(image)[None])[0]).save(output)
    return output


def evaluated_sampling(run: Path) -> SamplingConfig:
    """The sampling settings that the run was evaluated with; VILA-U's where it was not evaluated."""
    path = run / "evaluation" / SETTINGS
    saved = OmegaConf.load(path).sampling if path.is_file() else {}
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SamplingConfig), saved))
    assert isinstance(merged, SamplingConfig)
    return merged
