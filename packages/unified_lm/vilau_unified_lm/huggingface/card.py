"""Model cards: what an exported model is, what was measured of it, on what data it was trained, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from vilau_common.weight_files import read_json
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.huggingface.processor import UnifiedLMProcessor
from vilau_unified_lm.model import UnifiedLM
from vilau_vision_tower.tower import VisionTower

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2409.04429"
NOT_STATED = "not-stated"
# Settings that are places on a disk; of these a card tells the last component alone.
PLACES = ("directory", "tower", "text_tokenizer", "start", "pretrained")

USE_LM = """\
```python
import vilau_unified_lm.auto  # registers the classes
from transformers import AutoModelForMultimodalLM, AutoProcessor

processor = AutoProcessor.from_pretrained(DIR)
model = AutoModelForMultimodalLM.from_pretrained(DIR)
inputs = processor(text="a red circle", generation_mode="image")
ids = model.generate(**inputs, generation_mode="image", seeds=0)
pixels = model.decode_image_tokens(ids)
processor.post_process_multimodal_output(pixels, generation_mode="image")[0].save("out.png")
```
"""
USE_TOWER = """\
```python
import vilau_vision_tower.auto  # registers the classes
from transformers import AutoImageProcessor, AutoModel

images = AutoImageProcessor.from_pretrained(DIR)("picture.png")
features = AutoModel.from_pretrained(DIR)(**images).z_q
```
"""


def model_card(
    source: Path, model: UnifiedLM, processor: UnifiedLMProcessor, sampling: Sampling, licence: str
) -> str:
    """README.md of a unified LM that was exported from `source`."""
    tower = model.image_tokenizer
    about = (
        f"A unified model that reads and draws pictures ([VILA-U]({PAPER})): a {model.llm.config.model_type} of "
        f"{_millions(model.llm)}, a depth transformer of {_millions(model.depth)}, and a frozen vision tower of "
        f"{_millions(model.vision_tower)}. {_codes(tower)} Prompts: {processor.conversation}. Pictures are drawn with "
        f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p} and guidance "
        f"{sampling.guidance} where a call does not say otherwise."
    )
    parts = {
        "the LM": _training(source / "lm") or _training(source),
        "the tower": _training(source / "tower"),
    }
    return _card(about, USE_LM, _results(source), parts, licence, "any-to-any")


def tower_card(source: Path, tower: VisionTower, licence: str) -> str:
    """README.md of a tower alone."""
    about = (
        f"A vision tower ([VILA-U]({PAPER}), section 3.1) of {_millions(tower)}: images become codes that carry pixels "
        f"and meaning, and back. {_codes(tower)}"
    )
    return _card(
        about,
        USE_TOWER,
        _results(source),
        {"the tower": _training(source)},
        licence,
        "image-feature-extraction",
    )


def _card(
    about: str,
    use: str,
    results: Mapping[str, float],
    trainings: Mapping[str, dict[str, Any]],
    licence: str,
    pipeline: str,
) -> str:
    named: dict[str, Any] = (
        {"license": "other", "license_name": NOT_STATED} if licence == NOT_STATED else {"license": licence}
    )
    front = ModelCardData(library_name="transformers", pipeline_tag=pipeline, tags=["vila-u"], **named)
    stated = (
        "The weights' licence was not stated when they were exported."
        if licence == NOT_STATED
        else f"The weights: {licence}."
    )
    measured = "".join(f"| `{name}` | {value:.4g} |\n" for name, value in sorted(results.items()))
    table = f"| | test data |\n|---|---|\n{measured}" if measured else "Nothing was evaluated.\n"
    known = {part: settings for part, settings in trainings.items() if settings}
    data = "".join(f"- {part}: {', '.join(_data(settings))}\n" for part, settings in known.items())
    told = "".join(
        f"<details><summary>Settings of {part}</summary>\n\n```yaml\n{yaml.safe_dump(settings)}```\n\n</details>\n"
        for part, settings in known.items()
    )
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {'Vision tower' if use is USE_TOWER else 'Unified LM'}\n\n{about}\n\n"
        f"## Use\n\n{use}\n## Results\n\n{table}\n## Data\n\n{data or 'Not known.'}\n\n## Training\n\n"
        f"{told or 'Not known.'}\n\n## Licence\n\n{stated} The code: Apache-2.0.\n"
    )


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:,.1f}M parameters"


def _codes(tower: Any) -> str:
    height, width = tower.grid
    return (
        f"A picture of {tower.image_size} x {tower.image_size} pixels is {height} x {width} positions of {tower.depth} "
        f"codes of {tower.codebook_size:,}."
    )


def _results(source: Path) -> dict[str, float]:
    file = source / "results.json"
    if not file.is_file():
        return {}
    return {name: value for name, value in read_json(file).items() if isinstance(value, int | float)}


def _training(run: Path) -> dict[str, Any]:
    """The settings of a run, without the way to its places."""
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    settings: dict[str, Any] = _without_ways(yaml.safe_load(file.read_text(encoding="utf-8")))
    return settings


def _without_ways(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_ways(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_ways(inner, name) for inner in value]
    return Path(value).name if isinstance(value, str) and (name in PLACES or value.startswith("/")) else value


def _data(settings: Mapping[str, Any]) -> list[str]:
    """The names of the data sets that a run was trained on."""
    data = settings.get("data") or {}
    names = [entry.get("directory") for entry in data.get("blend") or [] if isinstance(entry, dict)]
    return [str(name) for name in (names or [data.get("directory")]) if name] or ["not known"]
