"""`vilau evaluate`: everything that can be said of a run, in numbers (results.json) and in examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from vilau_common import atomic
from vilau_common.config import config_to_yaml
from vilau_common.data.split import Split
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.registry import world_of
from vilau_common.errors import UserError
from vilau_common.run import RunDirectory
from vilau_unified_lm.evaluation.documents import evaluate_documents
from vilau_unified_lm.evaluation.drawing import Drawing, draw_prompts, drawing_metrics
from vilau_unified_lm.evaluation.examples import ExampleWriter
from vilau_unified_lm.evaluation.language import answer_questions, caption_pictures, language_metrics
from vilau_unified_lm.evaluation.splits import HELD_OUT, TEST, test_splits
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session
from vilau_unified_lm.vila.evaluate import evaluate_vila
from vilau_unified_lm.vila.model import is_vila
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.world import evaluate_on_world, scenes_right
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.tower import load_tower

SETTINGS = "config.yaml"


@dataclass(kw_only=True)
class SamplingConfig:
    """How pictures are drawn; see `Sampling`."""

    temperature: float = 1.0
    top_k: int | None = 900
    top_p: float = 0.96
    guidance: float = 3.0


@dataclass(kw_only=True)
class EvaluateConfig:
    """directory: a run with tower/ and lm/; or one of `train-vila`, of which answers and captions alone are evaluated.
    data: the prepared data set.

    questions: at most so many of each test split (null: all); drawings: prompts drawn of each; hard_negative_pictures:
    compared with their captions and near misses; documents: at most so many videos, edits, shots and stories of each
    test split (null: all); examples: of each sort, kept for the report.
    """

    directory: str
    data: str
    seed: int = 0
    questions: int | None = None
    drawings: int = 700
    hard_negative_pictures: int = 500
    documents: int | None = None
    examples: int = 48
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def evaluated_settings(run: Path) -> EvaluateConfig | None:
    """The settings that a run was evaluated with; None where it was not."""
    path = run / "evaluation" / SETTINGS
    if not path.is_file():
        return None
    settings = OmegaConf.merge(OmegaConf.structured(EvaluateConfig), OmegaConf.load(path))
    config = OmegaConf.to_object(settings)
    assert isinstance(config, EvaluateConfig)
    return config


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Evaluate on test data only, write results.json and evaluation/, and return the numbers."""
    run = RunDirectory(config.directory)
    if not run.path.is_dir():
        raise UserError(f"there is no run directory {run.path}")
    with atomic.new_directory(run.path / "evaluation") as directory:
        examples = ExampleWriter(directory, config.examples)
        if is_vila(run.path):
            results = evaluate_vila(run.path, Path(config.data), config.questions, examples)
        else:
            results = evaluate_line(run.path, config, examples)
        examples.finish()
        (directory / SETTINGS).write_text(config_to_yaml(config), encoding="utf-8")
    run.add_results(results)
    return results


def evaluate_line(run: Path, config: EvaluateConfig, examples: ExampleWriter) -> dict[str, float]:
    """The numbers of a tower and the unified LM on its codes."""
    sampling = Sampling(**asdict(config.sampling))
    tower = load_tower(run / "tower")
    text_encoder = TextEncoder.from_pretrained(run / "tower" / "model" / TEXT_ENCODER)
    session = Session.open(run / "lm")
    data = Path(config.data)
    world = world_of(data / TEST)
    results: dict[str, float] = {}
    for prefix, split in test_splits(data):
        known = split.known()
        truth = scenes_right(world, split.images[known], split, known)
        results[f"{prefix}verifier/scene_accuracy"] = float(truth.mean())
        seen = evaluate_on_world(tower, text_encoder, world, split, config.hard_negative_pictures)
        results |= {f"{prefix}tower/{key}": value for key, value in seen.metrics.items()}
        codes = seen.codes.numpy()
        answers = answer_questions(session, codes, split, config.questions)
        captions = caption_pictures(session, codes, split, world)
        drawings = draw_split(session, world, split, config, sampling)
        results |= {f"{prefix}lm/{key}": value for key, value in language_metrics(answers, captions).items()}
        results |= {f"{prefix}lm/{key}": value for key, value in drawing_metrics(drawings).items()}
        if not prefix:
            examples.reconstructions(split, seen.reconstructions, seen.read_back_right)
            examples.written("answers", split, answers)
            examples.written("captions", split, captions)
        examples.drawings(drawings, held_out=bool(prefix))
        results |= evaluate_documents(
            session,
            world,
            data,
            HELD_OUT if prefix else TEST,
            prefix=prefix,
            limit=config.documents,
            sampling=sampling,
            seed=config.seed,
            examples=examples,
        )
    return results


def draw_split(
    session: Session, world: World, split: Split, config: EvaluateConfig, sampling: Sampling
) -> list[Drawing]:
    """Drawings of prompts built from the split's scenes."""
    scenes = [scene for scene in split.scenes if scene is not None]
    prompts = world.drawing_prompts(scenes, config.seed, config.drawings)
    return draw_prompts(session, prompts, sampling, config.seed, world)
