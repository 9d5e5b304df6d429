"""`lmms-eval --model vilau --model_args pretrained=runs/demo --tasks …`: our models in lmms-eval's evaluation.

lmms-eval (0.7) finds this through the entry point `lmms_eval.models`; nothing of it is imported before. Its base class
stands in `model`.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval's model registry takes: a ModelManifest."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vilau", simple_class_path=f"{__name__}.model.Vilau")
