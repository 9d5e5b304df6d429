"""The plug-in against lmms-eval's interface: the package itself where it is installed, else the part of it that a
model meets (lmms_eval 0.7.3: api.model.lmms, models.registry_v2.ModelManifest), written down here."""

from __future__ import annotations

import abc
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_lm import IMAGE_SIZE, make_model
from tiny_vila import random_picture
from transformers import PreTrainedTokenizerFast

from vilau_common.errors import UserError
from vilau_unified_lm import lmms_eval_plugin
from vilau_unified_lm.evaluation.public.asked import Prompt, open_asked
from vilau_unified_lm.vocabulary import Vocabulary

PYPROJECT = Path(__file__).parents[2] / "packages/unified_lm/pyproject.toml"
PICTURES = [random_picture(seed) for seed in range(2)]
DOCUMENTS = [
    {"images": [0], "question": "how many?", "target": "two"},
    {"images": [1], "question": "is there a star?", "target": "no"},
    {"images": [], "question": "what?", "target": "red"},
    {"images": [0, 1], "question": "which?", "target": "one"},
]


class StandInModel(abc.ABC):
    """What lmms_eval.api.model.lmms is to a subclass."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = SimpleNamespace(add_partial=lambda *arguments: None)
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_string(cls, arguments: str, additional: dict[str, Any]) -> Any:
        named = dict(pair.split("=") for pair in arguments.split(","))
        return cls(**named, **{key: value for key, value in additional.items() if value is not None})


@dataclass(frozen=True)
class StandInManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that the registry would load."""
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for name, thing in (("api.model", StandInModel), ("models.registry_v2", StandInManifest)):
            module = ModuleType(f"lmms_eval.{name}")
            setattr(module, "lmms" if name == "api.model" else "ModelManifest", thing)
            monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["lmms_eval.models"]["vilau"]
    module, function = entry.split(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest.model_id == "vilau" and manifest.chat_class_path is None
    place, name = manifest.simple_class_path.rsplit(".", 1)
    yield getattr(importlib.import_module(place), name)
    sys.modules.pop(place, None)  # it stands on the stand-in


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerFast
) -> Path:
    directory = tmp_path_factory.mktemp("run")
    make_model(vocabulary).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    return directory


@pytest.fixture
def model(plugin: Any, run: Path) -> Any:
    """As lmms-eval makes it of `--model_args pretrained=… --batch_size 3 --device cpu`."""
    made = plugin.create_from_arg_string(
        f"pretrained={run}", {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    )
    made.task_dict = {"task": {"test": DOCUMENTS}}
    return made


def visuals(document: dict[str, Any]) -> list[Image.Image]:
    return [Image.fromarray(PICTURES[number]) for number in document["images"]]


def request(number: int, *second: Any) -> SimpleNamespace:
    """An Instance: (context, settings or target, doc_to_visual, doc_id, task, split)."""
    (given,) = second
    return SimpleNamespace(args=(DOCUMENTS[number]["question"], given, visuals, number, "task", "test"))


def prompt(number: int) -> Prompt:
    document = DOCUMENTS[number]
    return Prompt(document["question"], tuple(PICTURES[index] for index in document["images"]))


def test_answers_come_in_the_order_asked(model: Any, run: Path) -> None:
    asked = open_asked(run, "cpu")
    limits = [6, 3, 6, 3]
    requests = [request(n, {"max_new_tokens": limit}) for n, limit in enumerate(limits)]
    expected = [asked.answer([prompt(n)], limit)[0] for n, limit in enumerate(limits)]
    assert model.generate_until(requests) == expected
    assert len(set(expected)) > 1


def test_answers_end_before_stop_strings(model: Any) -> None:
    (whole,) = model.generate_until([request(0, {"max_new_tokens": 12})])
    assert len(whole) > 4
    stop = whole[3:5]
    (cut,) = model.generate_until([request(0, {"max_new_tokens": 12, "until": ["never", stop]})])
    assert cut == whole[: whole.index(stop)].strip()
    assert model.generate_until([request(0, {"max_new_tokens": 12, "until": stop})]) == [cut]


def test_likelihoods_are_mean_losses(model: Any, run: Path) -> None:
    asked = open_asked(run, "cpu")
    requests = [request(0, "two"), request(1, lambda document: document["target"])]
    found = model.loglikelihood(requests)
    for number, (loss, greedy) in enumerate(found):
        (expected,) = asked.likelihoods([prompt(number)], [DOCUMENTS[number]["target"]])
        assert loss == pytest.approx(float(expected.losses.mean()), rel=1e-4)
        assert greedy is expected.greedy


def test_pictures_are_fitted_as_set(plugin: Any, run: Path) -> None:
    wide = np.random.default_rng(0).integers(256, size=(30, 60, 3), dtype=np.uint8)
    made = plugin(pretrained=str(run), device="cpu", fit="crop")
    seen = made._prompt("what?", lambda document: [Image.fromarray(wide)], {}).pictures[0]
    assert seen.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    middle = Image.fromarray(wide[:, 15:45]).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(seen, np.asarray(middle))


def test_what_is_refused(model: Any, plugin: Any, run: Path) -> None:
    with pytest.raises(UserError, match="asks for sampled answers"):
        model.generate_until([request(0, {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(NotImplementedError):
        model.generate_until_multi_round([])
    video = SimpleNamespace(args=("what?", {}, lambda document: ["film.mp4"], 0, "task", "test"))
    with pytest.raises(UserError, match="a task shows a str, but vilau takes pictures alone"):
        model.generate_until([video])
    with pytest.raises(UserError, match="batch_size is 'auto'"):
        plugin(pretrained=str(run), batch_size="auto")
    with pytest.raises(UserError, match="fit is 'fill'"):
        plugin(pretrained=str(run), fit="fill")


def test_nothing_of_lmms_eval_is_imported_before_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmms_eval", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    importlib.reload(lmms_eval_plugin)
    with pytest.raises(ImportError):
        lmms_eval_plugin.manifest()
