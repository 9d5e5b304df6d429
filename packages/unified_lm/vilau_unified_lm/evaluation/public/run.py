"""`vilau evaluate-public`: the numbers of a unified LM or a VILA on public data sets.

    <output>/results.json              public/<set>/<number>, merged with what is there
    <output>/public/<set>/             results.json  predictions.jsonl  config.yaml  not_computed.json
                                       submission.json  drawings/…  drawings.png

All files are read and checked before the model is. What a stopped run has done is not done again; another model,
other questions or other settings in its place are refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vilau_common import atomic
from vilau_common.errors import UserError
from vilau_common.fingerprint import json_fingerprint, weights_fingerprint
from vilau_common.report.numbers import shown
from vilau_common.run import RunDirectory
from vilau_unified_lm.evaluation.public import draw, text
from vilau_unified_lm.evaluation.public.ask import ask
from vilau_unified_lm.evaluation.public.asked import (
    Asked,
    AskedUnifiedLM,
    model_directory,
    open_asked,
)
from vilau_unified_lm.evaluation.public.config import EvaluatePublicConfig, prompt_sets, question_sets
from vilau_unified_lm.evaluation.public.predictions import Predictions
from vilau_unified_lm.evaluation.public.prompts import DrawnPrompt, PromptSet
from vilau_unified_lm.evaluation.public.questions import Question, QuestionSet
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.vila.model import is_vila
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.features import INCEPTION, FeatureNetwork, build_features
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.task import TEXT_ENCODER
from vilau_vision_tower.weights import WeightsMissing

PUBLIC = "public"
DRAWINGS = "drawings"

Numbers = dict[str, float]


def evaluate_public(config: EvaluatePublicConfig) -> Numbers:
    """Evaluate on the sets that are named, write <output>, print tables, and return the numbers.

    Raises UserError for what is missing, malformed or does not fit, before the model is asked anything.
    """
    directory = Path(config.directory)
    if not directory.is_dir():
        raise UserError(f"there is no run directory {directory}")
    sampling = Sampling(**asdict(config.sampling))
    asking = [(questions, questions.read(config.short_answer)) for questions in question_sets(config)]
    drawing = [(prompts, prompts.read()) for prompts in prompt_sets(config)]
    content = text.read_text(config.text) if config.text.file is not None else None
    if not asking and not drawing and content is None:
        raise UserError(
            "no data set is named; name one, such as vqav2.directory=… or text.file=… (docs/evaluation.md)"
        )
    if drawing and is_vila(model_directory(directory)):
        raise UserError(
            f"{drawing[0][0].name} is to be drawn, but {directory} holds a VILA, which draws nothing"
        )
    for questions, listed in asking:
        _check_ids(questions.name, [question.id for question in listed])
    for prompts, drawn in drawing:
        _check_ids(prompts.name, [prompt.id for prompt in drawn])
    asked = open_asked(directory, config.device, config.compile)
    read = None if content is None else text.windows(asked, content, config.text)
    evaluation = Evaluation(config, asked, weights_fingerprint(model_directory(directory)))
    for questions, listed in asking:
        evaluation.questions(questions, listed)
    for prompts, drawn in drawing:
        evaluation.drawings(prompts, drawn, sampling)
    if read is not None:
        evaluation.perplexity(read)
    return evaluation.numbers


class Evaluation:
    """One model on one set after the other; `numbers` are all that were found."""

    def __init__(self, config: EvaluatePublicConfig, asked: Asked, model: str) -> None:
        """model: the fingerprint of its weights."""
        self.config, self.asked, self.model = config, asked, model
        self.numbers: Numbers = {}

    def questions(self, questions: QuestionSet, listed: list[Question]) -> None:
        """Ask, judge, and write predictions.jsonl with what was expected."""
        config, chosen = self.config, listed[: self.config.limit]
        content = json_fingerprint([[item.id, item.text, item.truth, item.choices] for item in listed])

        def evaluate(place: Path) -> tuple[Numbers, dict[str, str]]:
            predictions = Predictions(place / "predictions.jsonl")
            answered = ask(
                self.asked, questions, chosen, predictions, batch_size=config.batch_size, fit=config.fit
            )
            judged = {
                item.question.id: {
                    "question": item.question.text,
                    "picture": item.question.picture.name,
                    "kind": item.question.kind,
                    "expected": item.question.truth,
                    "score": item.score,
                }
                for item in answered
            }
            predictions.finish((question.id for question in chosen), judged)
            submission = questions.submission(answered)
            if submission is not None:
                atomic.write_text(place / "submission.json", json.dumps(submission) + "\n")
            return {**questions.numbers(answered), "questions": len(chosen)}, {}

        self._measured(questions.name, {"content": content, "fit": config.fit}, evaluate, len(listed))

    def drawings(self, prompts: PromptSet, listed: list[DrawnPrompt], sampling: Sampling) -> None:
        """Draw, compare with prompts and true pictures, and write drawings/ and drawings.png."""
        config, chosen = self.config, listed[: self.config.limit]
        asked = self.asked
        assert isinstance(asked, AskedUnifiedLM)
        content = json_fingerprint([[item.id, item.text] for item in listed])
        settings = {"content": content, "seed": config.seed, "sampling": asdict(config.sampling)}

        def evaluate(place: Path) -> tuple[Numbers, dict[str, str]]:
            folder = place / DRAWINGS
            texts, network, lacking = self._judges(with_references=chosen[0].reference is not None)
            prompts.prepare(folder)
            draw.draw(
                asked.session,
                prompts.name,
                chosen,
                folder,
                sampling,
                seed=config.seed,
                batch_size=config.batch_size,
            )
            draw.save_sheet(chosen, folder, place / f"{DRAWINGS}.png")
            numbers: Numbers = {"pictures": len(chosen)}
            scores: list[float] | None = None
            if texts is not None:
                found, scores = draw.clip_scores(asked.session.model.vision_tower, texts, chosen, folder)
                numbers |= found
            if network is not None:
                try:
                    numbers |= draw.distance(network, asked.device, chosen, folder)
                except NotComputed as error:
                    lacking[f"fid{network.suffix}"] = str(error)
            atomic.write_text(place / "predictions.jsonl", _drawn_lines(chosen, config.seed, scores))
            return numbers, lacking

        self._measured(prompts.name, settings, evaluate, len(listed))

    def perplexity(self, read: text.Text) -> None:
        """Perplexity of a text, window by window."""
        count = len(read.windows)
        chosen = min(count, self.config.limit or count)

        def evaluate(place: Path) -> tuple[Numbers, dict[str, str]]:
            predictions = Predictions(place / "predictions.jsonl")
            text.measure(self.asked, read, chosen, predictions, self.config.batch_size)
            return text.text_numbers(read, chosen, predictions), {}

        self._measured("text", {"content": json_fingerprint(read.windows)}, evaluate, count)

    def _measured(
        self,
        name: str,
        settings: Mapping[str, Any],
        evaluate: Callable[[Path], tuple[Numbers, dict[str, str]]],
        samples: int,
    ) -> None:
        """A set's numbers, written and shown. settings: with others than these, what was done is of no use.

        samples: of the whole set; numbers of fewer stay with the set.
        """
        run = RunDirectory(Path(self.config.output) / PUBLIC / name)
        with run.lock():
            run.claim({"model": self.model, **settings})
            numbers, lacking = evaluate(run.path)
            atomic.write_text(run.results, json.dumps(numbers, indent=1) + "\n")
            atomic.write_text(run.path / "not_computed.json", json.dumps(lacking, indent=1) + "\n")
        named = {f"{PUBLIC}/{name}/{key}": value for key, value in numbers.items()}
        self.numbers |= named
        limit = self.config.limit
        if limit is None or limit >= samples:
            RunDirectory(self.config.output).add_results(named)
        _print(name, numbers, lacking, run.path)

    def _judges(
        self, with_references: bool
    ) -> tuple[TextEncoder | None, FeatureNetwork | None, dict[str, str]]:
        """The text encoder of CLIP scores, and the network of FID; and why those that are missing are."""
        config = self.config
        tower = Path(config.tower or Path(config.directory) / "tower")
        place = (tower / "model" if (tower / "model").is_dir() else tower) / TEXT_ENCODER
        texts: TextEncoder | None = None
        network: FeatureNetwork | None = None
        lacking: dict[str, str] = {}
        if place.is_dir():
            texts = TextEncoder.from_pretrained(place).to(self.asked.device)
        else:
            lacking["clip_score"] = (
                f"CLIP scores need the text encoder of the tower, but there is none in {place}: name the tower's run "
                "with tower=DIR"
            )
        if config.features is not None and with_references:
            try:
                network = build_features(config.features, config.inception_weights, tower, self.asked.device)
            except (NotComputed, WeightsMissing) as error:
                suffix = "" if config.features == INCEPTION else f"_{Path(config.features).name}"
                lacking[f"fid{suffix}"] = str(error)
        return texts, network, lacking


def _check_ids(name: str, ids: Sequence[str]) -> None:
    """Raises UserError where two samples of a set have one id: one would be taken for the other."""
    twice = [id_ for id_, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{name}: the id {twice[0]} comes more than once")


def _drawn_lines(prompts: list[DrawnPrompt], seed: int, scores: list[float] | None) -> str:
    lines = []
    for number, prompt in enumerate(prompts):
        record: dict[str, Any] = {"id": prompt.id, "prompt": prompt.text, "kind": prompt.kind}
        record |= {"seed": seed + number, "picture": f"{DRAWINGS}/{prompt.file}"}
        if scores is not None:
            record["clip_score"] = scores[number]
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _print(name: str, numbers: Mapping[str, float], lacking: Mapping[str, str], place: Path) -> None:
    table = Table(title=name, title_justify="left", box=None, pad_edge=False, show_header=False)
    for key, value in numbers.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else shown(key, value))
    for key in lacking:
        table.add_row(key, "not computed")
    table.columns[1].justify = "right"
    console = Console()
    console.print(table)
    for reason in dict.fromkeys(lacking.values()):
        console.print(f"not computed: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {place}", markup=False, highlight=False, soft_wrap=True)
