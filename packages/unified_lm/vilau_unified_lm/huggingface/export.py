"""`vilau export`: what transformers' Auto classes load, from a run, a converted or a released checkpoint.

config.json  model.safetensors  generation_config.json  processor_config.json  tokenizer*  README.md   a unified LM
config.json  model.safetensors  preprocessor_config.json  README.md                                    a tower alone
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.weight_files import read_json
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.huggingface.card import CARD, model_card, tower_card
from vilau_unified_lm.huggingface.model import UnifiedLMForConditionalGeneration
from vilau_unified_lm.huggingface.processor import UnifiedLMProcessor
from vilau_unified_lm.session import Session
from vilau_unified_lm.use import evaluated_sampling
from vilau_vision_tower.clip import load_text_tokenizer
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.image_processor import VisionTowerImageProcessor
from vilau_vision_tower.tower import VisionTower, load_tower


def export(source: Path, output: Path, licence: str) -> Path:
    """Write the model of `source` (a run of an LM, a whole line or a tower, or an official checkpoint) to `output`.

    licence: of the weights, as the hub names it. Pictures are drawn by default as the run was evaluated. Raises
    UserError where `output` exists, or where there is no such model.
    """
    if output.exists():
        raise UserError(f"{output} exists; give a directory that does not")
    if _is_tower(source):
        tower = load_tower(source)
        with atomic.new_directory(output) as target:
            tower.save_pretrained(target)
            image_processor(tower).save_pretrained(target)
            (target / CARD).write_text(tower_card(source, tower, licence), encoding="utf-8")
        return output
    session = Session.open(source)
    model, processor = session.model, processor_of(session)
    sampling = Sampling(**asdict(evaluated_sampling(source)))
    with atomic.new_directory(output) as target:
        model.save_pretrained(target)
        # The weights are the same; only this class generates.
        model.config.architectures = [UnifiedLMForConditionalGeneration.__name__]
        model.config.save_pretrained(target)
        processor.save_pretrained(target)
        # By the name of some classes (LLaMA's), AutoTokenizer would build another tokenizer than tokenizer.json has.
        load_text_tokenizer(target).save_pretrained(target)
        generation_config(session, sampling).save_pretrained(target)
        card = model_card(source, model, processor, sampling, licence)
        (target / CARD).write_text(card, encoding="utf-8")
    return output


def processor_of(session: Session) -> UnifiedLMProcessor:
    """The processor of an open model."""
    return make_processor(session.model.config, session.text_tokenizer, session.model.vision_tower)


def make_processor(
    config: UnifiedLMConfig, tokenizer: PreTrainedTokenizerBase, tower: VisionTower
) -> UnifiedLMProcessor:
    """The processor of a model with this configuration and tower."""
    return UnifiedLMProcessor(
        VisionTowerImageProcessor(tower.image_size, config.image_fit),
        tokenizer,
        codebook_size=tower.codebook_size,
        depth=tower.depth,
        grid=tower.grid,
        conversation=config.conversation,
        video_frames=config.video_frames,
    )


def generation_config(session: Session, sampling: Sampling) -> GenerationConfig:
    """What `generate` has to know of the tokens, and how pictures are drawn where a call does not say."""
    vocabulary = session.builder.vocabulary
    ends = list(dict.fromkeys((session.builder.chat.end, vocabulary.end)))
    return GenerationConfig(
        bos_token_id=vocabulary.begin,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=vocabulary.pad,
        vocabulary=asdict(vocabulary),
        visual=asdict(sampling),
    )


def image_processor(tower: VisionTower) -> VisionTowerImageProcessor:
    """How pictures become squares for a tower alone: their middle, as it was trained."""
    return VisionTowerImageProcessor(tower.image_size)


def _is_tower(source: Path) -> bool:
    for directory in (source / "model", source):
        if (directory / "config.json").is_file():
            return read_json(directory / "config.json").get("model_type") == VisionTowerConfig.model_type
    return False
