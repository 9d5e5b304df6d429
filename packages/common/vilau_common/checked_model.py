"""Loading a model that tells what is wrong with its files, where transformers would go on with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

from vilau_common.errors import UserError
from vilau_common.weight_files import WeightFiles

Model = TypeVar("Model", bound="CheckedModel")


class CheckedModel(PreTrainedModel):
    """A `PreTrainedModel` whose weights must all be there, and no others."""

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' own.

        Raises UserError, naming one, for tensors that are missing, that the model has no place for, or whose shape is
        another (unless ignore_mismatched_sizes asks for that); and for a file that is missing or cut off, before
        anything is read.
        """
        source = pretrained_model_name_or_path
        if source is not None and Path(source).is_dir():
            WeightFiles(Path(source, kwargs.get("subfolder") or ""))
        wants_report = kwargs.pop("output_loading_info", False)
        other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        model, report = super().from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if report["mismatched_keys"] and not other_shapes:
            name, stored, wanted = sorted(report["mismatched_keys"])[0]
            raise UserError(
                f"{source}: {name} has the shape {list(stored)}, but by the config.json beside it, it is {list(wanted)}"
            )
        for key, wrong in (
            ("missing_keys", "are missing"),
            ("unexpected_keys", "have no place in its config.json's model"),
        ):
            if names := sorted(report[key]):
                raise UserError(
                    f"{source}: {len(names)} of the weights {wrong}, among them {names[0]}; it was saved by another "
                    "version, or of another model"
                )
        return (model, report) if wants_report else model
