"""What `vilau evaluate-public` measures, and on which files."""

from __future__ import annotations

from dataclasses import dataclass, field

from vilau_common.errors import UserError
from vilau_common.pictures import FITS
from vilau_unified_lm.evaluation.public.captions import Captions, CaptionsConfig
from vilau_unified_lm.evaluation.public.prompts import Geneval, GenevalConfig, Mjhq, MjhqConfig, PromptSet
from vilau_unified_lm.evaluation.public.questions import QuestionSet
from vilau_unified_lm.evaluation.public.seed import Seed, SeedConfig
from vilau_unified_lm.evaluation.public.text import TextConfig
from vilau_unified_lm.evaluation.public.vqa import (
    Gqa,
    GqaConfig,
    Textvqa,
    TextvqaConfig,
    Vqav2,
    Vqav2Config,
)
from vilau_unified_lm.evaluation.public.yes_no import Mme, MmeConfig, Pope, PopeConfig
from vilau_unified_lm.evaluation.run import SamplingConfig

# LLaVA's, which VILA and VILA-U are trained and evaluated with.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(kw_only=True)
class EvaluatePublicConfig:
    """directory: a run with lm/, an LM's own, or one of `train-vila`. output: where numbers go (results.json) and
    public/. tower: the tower's run, whose text encoder CLIP scores need; null: <directory>/tower.

    device: null takes a GPU where there is one. compile: none, static or graph, as the engine's. limit: the first so
    many questions, prompts or windows of each set (null: all); numbers of a part stay out of results.json. fit: how a
    picture is made square, one of FITS (VILA-U squeezes it: resize). short_answer: what is put behind
    questions that want a word or phrase; "" where the model was not trained with it.

    features, inception_weights: the network of FID, as of evaluate-tower. sampling: how pictures are drawn, and seed.

    Then the sets, of which those are evaluated whose directory or file is named.
    """

    directory: str
    output: str
    tower: str | None = None
    device: str | None = None
    compile: str = "none"
    batch_size: int = 32
    limit: int | None = None
    fit: str = "resize"
    short_answer: str = SHORT_ANSWER
    seed: int = 0
    features: str | None = "inception"
    inception_weights: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    vqav2: Vqav2Config = field(default_factory=Vqav2Config)
    gqa: GqaConfig = field(default_factory=GqaConfig)
    textvqa: TextvqaConfig = field(default_factory=TextvqaConfig)
    pope: PopeConfig = field(default_factory=PopeConfig)
    mme: MmeConfig = field(default_factory=MmeConfig)
    seed_bench: SeedConfig = field(default_factory=SeedConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    geneval: GenevalConfig = field(default_factory=GenevalConfig)
    mjhq: MjhqConfig = field(default_factory=MjhqConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}")
        if self.fit not in FITS:
            raise UserError(f"fit is {self.fit!r}; it is one of {', '.join(FITS)}")


def question_sets(config: EvaluatePublicConfig) -> list[QuestionSet]:
    """Those that are named. Raises UserError where their directories, or what they need, are missing."""
    sets: list[QuestionSet] = []
    if config.vqav2.directory is not None:
        sets.append(Vqav2(config.vqav2))
    if config.gqa.directory is not None:
        sets.append(Gqa(config.gqa))
    if config.textvqa.directory is not None:
        sets.append(Textvqa(config.textvqa))
    if config.pope.directory is not None:
        sets.append(Pope(config.pope))
    if config.mme.directory is not None:
        sets.append(Mme(config.mme))
    if config.seed_bench.directory is not None:
        sets.append(Seed(config.seed_bench))
    if config.captions.directory is not None:
        sets.append(Captions(config.captions))
    return sets


def prompt_sets(config: EvaluatePublicConfig) -> list[PromptSet]:
    """Those that are named. Raises UserError where their files are missing."""
    sets: list[PromptSet] = []
    if config.geneval.file is not None:
        sets.append(Geneval(config.geneval))
    if config.mjhq.directory is not None:
        sets.append(Mjhq(config.mjhq))
    return sets
