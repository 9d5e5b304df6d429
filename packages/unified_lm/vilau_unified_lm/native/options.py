"""What `generate` is asked for, in Hugging Face's words, and what the engine understands of it.

`generation_config.json` says, beside Hugging Face's fields, which ids open and close pictures, what a blank prompt is,
and how pictures are drawn unless the caller says otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig

from vilau_common.errors import UserError
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.native.ids import prompt_ids
from vilau_unified_lm.vocabulary import Vocabulary

# Ours in generation_config.json.
MARKS, BLANK_IMAGE, BLANK_VIDEO, DRAWING = "marks", "blank_image_ids", "blank_video_ids", "drawing"
CACHES = {None: "none", "dynamic": "none", "static": "static"}
OURS = {MARKS, BLANK_IMAGE, BLANK_VIDEO, DRAWING}
# Fields that the engine acts on; any other that asks for something is refused.
HONOURED = OURS | {
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "guidance_scale",
    "num_return_sequences",
    "cache_implementation",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
}
# What they say where they ask for nothing.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "use_cache": True,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def generation_config_of(builder: DocumentBuilder, drawing: Sampling | None = None) -> GenerationConfig:
    """Of a model whose prompts `builder` writes. drawing: how it draws by itself; None: as VILA-U does."""
    vocabulary, drawing = builder.vocabulary, drawing or Sampling()
    return GenerationConfig(
        bos_token_id=vocabulary.begin,
        eos_token_id=sorted({vocabulary.end, builder.chat.end}),
        pad_token_id=vocabulary.pad,
        **{
            MARKS: list(vocabulary.special_ids),
            BLANK_IMAGE: prompt_ids(builder.drawing_prompt(""), vocabulary),
            BLANK_VIDEO: prompt_ids(builder.filming_prompt(""), vocabulary),
            DRAWING: {
                "temperature": drawing.temperature,
                "top_k": drawing.top_k,
                "top_p": drawing.top_p,
                "guidance_scale": drawing.guidance,
            },
        },
    )


def vocabulary_of(config: GenerationConfig, text_size: int, codebook_size: int, depth: int) -> Vocabulary:
    """The extended vocabulary of a model with this generation config. Raises UserError where that lacks the marks."""
    marks = getattr(config, MARKS, None)
    if marks is None:
        raise UserError(
            f"the model's generation config has no {MARKS!r}, the ids that open and close pictures: load the model by "
            "from_pretrained, or set it to `generation_config_of`"
        )
    end = config.eos_token_id
    image_start, image_end, video_start, video_end = marks
    return Vocabulary(
        text_size=text_size,
        codebook_size=codebook_size,
        depth=depth,
        begin=config.bos_token_id,
        end=end[0] if isinstance(end, list) else end,
        pad=config.pad_token_id,
        image_start=image_start,
        image_end=image_end,
        video_start=video_start,
        video_end=video_end,
    )


def check_options(config: GenerationConfig, unknown: Collection[str]) -> None:
    """Raises UserError for what the engine cannot do, beam search and its like, and for what no one knows."""
    if unknown:
        raise UserError(
            f"generate has no option {', '.join(sorted(unknown))}; it takes what the processor returns, "
            f"generation_mode, seed, streamer, frames, negative_prompt_ids, {', '.join(sorted(HONOURED - OURS))}"
        )
    for name, value in config.to_diff_dict().items():
        nothing = (None, NEUTRAL[name]) if name in NEUTRAL else (None, False, 0, [])
        if name not in HONOURED and name != "transformers_version" and value not in nothing:
            raise UserError(
                f"{name}={value!r} asks for what is not supported here: text and codes are sampled one by one, with "
                "do_sample, temperature, top_k, top_p and guidance_scale, or taken greedily"
            )
    if config.cache_implementation not in CACHES:
        raise UserError(
            f"cache_implementation is {config.cache_implementation!r}; it is 'dynamic' or 'static'"
        )


def text_sampling(config: GenerationConfig) -> Sampling:
    """How text is written: greedily unless do_sample. Raises UserError for a value out of range."""
    if not config.do_sample:
        return Sampling(temperature=0, top_k=None, top_p=1.0, guidance=1.0)
    return Sampling(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or None,  # 0 is Hugging Face's way to keep all
        top_p=1.0 if config.top_p is None else config.top_p,
        guidance=1.0,
    )


def visual_sampling(config: GenerationConfig) -> Sampling:
    """How codes are drawn: as the model does by itself, but for what is set; do_sample=False takes the likeliest.

    Raises UserError for a value out of range.
    """
    own = getattr(config, DRAWING)
    values = {name: own[name] if getattr(config, name) is None else getattr(config, name) for name in own}
    return Sampling(
        temperature=0.0 if config.do_sample is False else values["temperature"],
        top_k=values["top_k"] or None,
        top_p=values["top_p"],
        guidance=values["guidance_scale"],
    )
