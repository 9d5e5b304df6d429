"""The model card: what a model is, how to use it, what it was trained on and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from vilau_unified_lm.model import UnifiedLM

PAPER = "https://arxiv.org/abs/2409.04429"
# A card shows what sums up; a run's results.json has the rest.
SHOWN_BELOW = 2  # slashes in a key


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run tells of itself. license: as the hub names it. data: of its settings, what names data sets.

    results: the run's results.json; machine: its machine.json. All empty where there is no run.
    """

    license: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def model_card(model: UnifiedLM, training: Training) -> str:
    """README.md with the hub's metadata at its head."""
    head = ModelCardData(
        license=training.license,
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=["vila-u", "text-to-image", "image-text-to-text"],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        "# A unified language model that reads and draws",
        _described(model),
        USE,
    ]
    if training.data:
        listed = yaml.safe_dump(dict(training.data), sort_keys=False).rstrip()
        parts.append(f"## Data\n\nAs the training's configuration names it:\n\n```yaml\n{listed}\n```")
    if training.results:
        rows = [
            f"| `{key}` | {value:.4g} |"
            for key, value in training.results.items()
            if isinstance(value, int | float) and key.count("/") < SHOWN_BELOW
        ]
        where = ", ".join(f"{name} {value}" for name, value in training.machine.items())
        table = "\n".join(["| | |", "|---|---|", *rows])
        parts.append(
            "## Results\n\nOn test data only; docs/evaluation.md of the project says what each number means."
            f"\n\n{table}" + (f"\n\n{where}" if where else "")
        )
    parts.append(
        "## Limits\n\nIt knows what its data show. Drawings and answers may be wrong, and carry the biases of the data "
        "and of the models that it began as."
        + ("" if training.license else " No licence has been chosen: ask who published it.")
    )
    return "\n\n".join(parts) + "\n"


USE = """## Use

```python
import vilau_unified_lm.auto  # makes the model known to transformers
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained(directory)
processor = AutoProcessor.from_pretrained(directory)

shown = {"type": "image", "path": "picture.png"}
question = [{"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]}]
inputs = processor.apply_chat_template(question, return_dict=True)
ids = model.generate(**inputs, max_new_tokens=64)
print(processor.post_process_multimodal_output(ids[:, inputs["input_ids"].shape[1] :])[0])

inputs = processor("a red circle", generation_mode="image")
ids = model.generate(**inputs, generation_mode="image", seed=0)
pixels = model.decode_image_tokens(ids)
processor.post_process_multimodal_output(pixels, generation_mode="image")[0].save("drawn.png")
```"""


def _described(model: UnifiedLM) -> str:
    tower, config = model.image_tokenizer, model.config
    height, width = tower.grid

    def millions(module: Any) -> str:
        return f"{sum(weight.numel() for weight in module.parameters()) / 1e6:.4g}M"

    return (
        f"A [VILA-U]({PAPER}) model. A vision tower turns an image of {tower.image_size} x {tower.image_size} pixels "
        f"into {height} x {width} positions of {tower.depth} codes out of {tower.codebook_size:,}; a causal language "
        f"model ({config.backbone_config.model_type}) reads and writes them as it reads and writes words.\n\n"
        "| part | parameters |\n|---|---|\n"
        f"| language model | {millions(model.llm)} |\n| depth transformer | {millions(model.depth)} |\n"
        f"| projector | {millions(model.projector)} |\n| vision tower | {millions(model.vision_tower)} |"
    )
