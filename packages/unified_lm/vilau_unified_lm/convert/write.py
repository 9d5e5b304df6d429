"""A `UnifiedLM` as a checkpoint of the official VILA-U code."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlamaConfig, SiglipVisionConfig

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.weight_files import WeightFiles
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.convert.layout import PARTS, is_official
from vilau_unified_lm.convert.links import canonical, unified_links
from vilau_unified_lm.convert.read import METADATA, SHARD_SIZE, inspect, skeleton
from vilau_unified_lm.convert.template import OFFICIAL, Template
from vilau_unified_lm.model import UnifiedLM, model_directory
from vilau_vision_tower.decoder import ConvDecoderConfig
from vilau_vision_tower.quantizer import QuantizerConfig


def convert_to_official(source: Path, output: Path, like: Path | None = None) -> Path:
    """Write the model of a run, or of a converted checkpoint, in the official layout.

    like: an official or converted checkpoint of the same architecture, which gives what the model does not hold:
    configurations, the tokenizer's files, SigLIP's text model; None: the one that `source` was converted from.

    Raises UserError where `output` exists, where there is nothing to write it like, and for what the official code
    cannot hold or does not fit `like`.
    """
    if output.exists():
        raise UserError(f"{output} exists; give a directory that does not")
    if is_official(source):
        raise UserError(f"{source} is in the official layout already")
    directory = model_directory(source)
    config = UnifiedLMConfig.from_pretrained(directory)
    check_expressible(config)
    template = _template(directory if like is None else like, given=like is not None)
    model, ours = skeleton(config), WeightFiles(directory)
    states = {part: _part_state(part, model, ours, template) for part in PARTS}
    with atomic.new_directory(output) as target:
        template.copy_files(target)
        for part, state in states.items():
            (target / part).mkdir(exist_ok=True)
            save_torch_state_dict(state, target / part, max_shard_size=SHARD_SIZE, metadata=METADATA)
    return output


def check_expressible(config: UnifiedLMConfig) -> None:
    """Raises UserError where the official code has no such model."""
    backbone, tower = config.backbone_config, config.tower_config
    quantizer, decoder = tower.quantizer_config, tower.decoder_config
    impossible = [
        (f"{backbone.model_type} backbone", not isinstance(backbone, LlamaConfig)),
        ("learned grid positions", config.grid_positions),
        (
            f"{tower.encoder_config.model_type} encoder",
            not isinstance(tower.encoder_config, SiglipVisionConfig),
        ),
        (f"{decoder.kind} decoder", not isinstance(decoder, ConvDecoderConfig)),
        (f"{quantizer.kind} quantizer", not isinstance(quantizer, QuantizerConfig)),
    ]
    if isinstance(quantizer, QuantizerConfig):
        impossible += [
            ("codes narrower than the encoder", quantizer.code_dim is not None),
            ("codebooks learned by gradient", quantizer.codebook_update != "ema"),
        ]
    if found := [what for what, is_so in impossible if is_so]:
        raise UserError(f"the official code has no {', no '.join(found)}; this model has")


def _template(directory: Path, given: bool) -> Template:
    if is_official(directory):
        inspected = inspect(directory)
        return Template.of(inspected.checkpoint, inspected.links, inspected.model)
    saved = model_directory(directory) / OFFICIAL if given else directory / OFFICIAL
    if not saved.is_dir():
        raise UserError(
            f"{directory} was not converted from an official checkpoint, so that its text tokenizer's files and its "
            "SigLIP's text model are not at hand; give a checkpoint of the same architecture that has them, as --like"
        )
    return Template.saved(saved)


def _part_state(part: str, model: UnifiedLM, ours: WeightFiles, template: Template) -> dict[str, Tensor]:
    """The tensors of a part under the template's names."""
    shapes = template.shapes[part]
    links = unified_links(model, template.shapes)[part]
    made: dict[str, Tensor] = {}
    for link in links:
        if link.ours not in ours:
            raise UserError(f"{ours.main_file} lacks {link.ours}")
        parts = link.split(ours.tensor(link.ours))
        for name, tensor in zip(link.theirs, parts, strict=True):
            # Parts of one tensor share its memory, which must not be stored once for all of them.
            made[name] = template.with_padding_row(name, tensor if len(parts) == 1 else tensor.clone())
    state = {}
    for name, shape in shapes.items():
        source = canonical(part, name, model, shapes)
        if source not in made and name not in template.left_over:
            raise UserError(
                f"the model has nothing for {part}'s {name}; its architecture is another than the template's"
            )
        tensor = made[source] if source in made else template.read(name)
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{part}'s {name} has the shape {list(tensor.shape)} here, but {list(shape)} in the template; their "
                "architectures must be the same"
            )
        state[name] = tensor.clone() if source != name else tensor
    if surplus := sorted(made.keys() - shapes.keys()):
        raise UserError(
            f"the template's {part} has no {surplus[0]}; its architecture is another than the model's"
        )
    return state
