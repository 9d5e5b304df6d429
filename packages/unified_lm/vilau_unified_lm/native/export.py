"""`vilau export`: a run's model as a directory that transformers loads and the hub takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_unified_lm.convert.layout import is_official
from vilau_unified_lm.evaluation.run import evaluated_settings
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.model import model_directory
from vilau_unified_lm.native.card import Training, model_card
from vilau_unified_lm.native.model import CARD, VilaUForMultimodalLM
from vilau_unified_lm.native.options import generation_config_of
from vilau_unified_lm.native.processor import VilaUProcessor
from vilau_unified_lm.vila.model import is_vila


def export(run: Path, output: Path, license: str | None = None) -> Path:
    """Write weights, processor, generation config (how the run was evaluated) and a card with its results.

    Raises UserError where `run` holds no unified LM, or `output` exists.
    """
    if output.exists():
        raise UserError(f"{output} exists; give a directory that does not")
    if is_official(run):
        raise UserError(
            f"{run} is a checkpoint of the official code; `vilau convert from-official` reads these"
        )
    path = model_directory(run)
    if is_vila(path):
        raise UserError(f"{run} holds a VILA; only a unified LM can be exported")
    model = VilaUForMultimodalLM.from_pretrained(path, dtype="auto")
    processor = VilaUProcessor.from_pretrained(path)
    evaluated = evaluated_settings(run)
    if evaluated is not None:
        how = evaluated.sampling
        drawing = Sampling(
            temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, guidance=how.guidance
        )
        model.generation_config = generation_config_of(processor.builder, drawing)
    training = Training(
        license=license,
        data=_data(path.parent / "config.yaml"),
        results=_json(run / "results.json"),
        machine=_json(run / "machine.json"),
    )
    with atomic.new_directory(output) as target:
        model.save_pretrained(target)
        processor.save_pretrained(target)
        (target / CARD).write_text(model_card(model, training), encoding="utf-8")
    return output


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return values


def _data(path: Path) -> dict[str, Any]:
    """What a training's config.yaml says of its data."""
    if not path.is_file():
        return {}
    data = yaml.safe_load(path.read_text(encoding="utf-8")).get("data", {})
    named = {"directory": data.get("directory"), "blend": data.get("blend")}
    named["mixture"] = {name: share for name, share in (data.get("mixture") or {}).items() if share}
    return {name: value for name, value in named.items() if value}
