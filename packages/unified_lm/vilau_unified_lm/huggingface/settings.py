"""The settings of `generate`: transformers' where the engine has them, and one sentence for those that it has not.

How words are sampled and how codes are drawn differ as a rule (likeliest word, but drawn codes), so a
`generation_config` holds both: transformers' own fields are those of words, its dictionary `visual` (the fields of
`Sampling`) those of codes. What a call itself says is of what the call generates: words in mode text, else codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from vilau_common.errors import UserError
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.vocabulary import Vocabulary

# What transformers takes for words where neither the model nor the call says anything.
TOP_K = 50
SAMPLING = ("temperature", "top_k", "top_p")
HONOURED = {
    *SAMPLING,
    "do_sample",
    "guidance_scale",
    "max_new_tokens",
    "max_length",
    "num_return_sequences",
    "cache_implementation",
    "eos_token_id",
    "pad_token_id",
}
# What stands in a generation_config, but is nothing that a call would say.
STORED = {"bos_token_id", "vocabulary", "visual", "transformers_version"}
# Values that ask for nothing.
DEFAULTS = {
    name: value
    for name, value in GenerationConfig._get_default_generation_params().items()
    if value is not None
}
CACHES = {None: "none", "dynamic": "none", "static": "static"}


@dataclass(frozen=True)
class Settings:
    """What a call of `generate` comes down to."""

    vocabulary: Vocabulary
    words: Sampling
    visual: Sampling
    ends: tuple[int, ...]  # the ids that close a text; the first one stands for all in what is generated
    padding: int  # the id behind what is generated
    max_new_tokens: int | None  # None: as many as there is room for
    sequences: int  # of each prompt
    compile: str  # the engine's

    @classmethod
    def of(
        cls,
        mode: str,
        own: GenerationConfig,
        given: GenerationConfig | None,
        said: dict[str, Any],
        prompt_length: int,
    ) -> Settings:
        """own: the model's configuration; given: the call's; said: what the call says by name.

        Raises UserError for a setting that the engine has not, and for one that would mean nothing.
        """
        said = {name: value for name, value in said.items() if value is not None}
        if given is not None and given is not own:
            said = {**_said_by(given, own), **said}
        everything = {**own.to_diff_dict(), **said}
        _refuse_unknown(everything)
        if "vocabulary" not in everything:
            raise UserError(
                "the model's generation_config does not name its tokens; write its directory with `vilau export`"
            )
        cache = everything.get("cache_implementation")
        if cache not in CACHES:
            raise UserError(f"cache_implementation is {cache!r}; it is dynamic or static")
        ends = everything.get("eos_token_id")
        new = everything.get("max_new_tokens")
        if new is None and "max_length" in everything:
            new = everything["max_length"] - prompt_length
        sequences = everything.get("num_return_sequences", 1)
        for name, value in (("max_new_tokens", new), ("num_return_sequences", sequences)):
            if value is not None and value < 1:
                raise UserError(f"{name} comes to {value}; at least 1 is needed")
        drawn = Sampling(**everything.get("visual", {}))
        vocabulary = Vocabulary(**everything["vocabulary"])
        return cls(
            vocabulary=vocabulary,
            words=_words(everything, said) if mode == "text" else _words(own.to_diff_dict(), {}),
            visual=drawn if mode == "text" else _visual(drawn, said),
            ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
            padding=everything.get("pad_token_id", vocabulary.pad),
            max_new_tokens=new,
            sequences=sequences,
            compile=CACHES[cache],
        )


def _said_by(given: GenerationConfig, own: GenerationConfig) -> dict[str, Any]:
    """What a call's configuration says: as far as it differs from the model's own, of which pipelines hand a copy."""
    theirs, mine = given.to_diff_dict(), own.to_diff_dict()
    # Pipelines of transformers 5.13 write all of transformers' defaults into that copy.
    if DEFAULTS.keys() <= theirs.keys():
        theirs = {name: value for name, value in theirs.items() if DEFAULTS.get(name) != value}
    return {name: value for name, value in theirs.items() if mine.get(name) != value}


def _refuse_unknown(everything: dict[str, Any]) -> None:
    """Raises UserError for what the engine has not."""
    refused = {
        name: value
        for name, value in everything.items()
        if name not in HONOURED | STORED and not name.startswith("_") and value not in (None, False)
    }
    refused = {name: value for name, value in refused.items() if DEFAULTS.get(name) != value}
    if everything.get("use_cache") is False:
        refused["use_cache"] = False
    if "num_beams" in refused:
        raise UserError(
            f"num_beams is {refused['num_beams']}, but there is no beam search here: positions are drawn, or the "
            "likeliest token is taken (do_sample)"
        )
    if refused:
        raise UserError(
            f"generate() has no {', '.join(sorted(refused))} here; it has {', '.join(sorted(HONOURED))}, seeds, "
            "num_frames and streamer"
        )


def _words(everything: dict[str, Any], said: dict[str, Any]) -> Sampling:
    """How words are sampled."""
    if said.get("guidance_scale", 1) != 1:
        raise UserError("guidance_scale is of generation modes that draw; in mode text it would do nothing")
    if not everything.get("do_sample"):
        if useless := [name for name in SAMPLING if name in said]:
            raise UserError(f"{useless[0]} is of sampling: say do_sample=True besides")
        return GREEDY
    return Sampling(
        temperature=everything.get("temperature", 1.0),
        top_k=everything.get("top_k", TOP_K) or None,
        top_p=everything.get("top_p", 1.0),
        guidance=1.0,
    )


def _visual(drawn: Sampling, said: dict[str, Any]) -> Sampling:
    """How codes are drawn, by the model's settings and what the call says."""
    changes = {name: said[name] for name in SAMPLING if name in said}
    if "top_k" in changes:
        changes["top_k"] = changes["top_k"] or None
    if "guidance_scale" in said:
        changes["guidance"] = said["guidance_scale"]
    if "temperature" in said or said.get("do_sample") is False:
        changes["depth_temperatures"] = None
    if said.get("do_sample") is False:
        changes["temperature"] = 0.0
    return replace(drawn, **changes)


def seeds_of(seeds: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed a sequence: an int counts up from there; None: drawn by torch's generator (`transformers.set_seed`).

    Raises UserError for another number of seeds.
    """
    if seeds is None:
        drawn: list[int] = torch.randint(2**62, (count,)).tolist()
        return drawn
    if isinstance(seeds, int):
        return [seeds + number for number in range(count)]
    if len(seeds) != count:
        raise UserError(f"there are {len(seeds)} seeds for {count} sequences; give one for each, or an int")
    return list(seeds)
