"""`vilau evaluate-public` on tiny models and toy files: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import public_toys as toys
import pytest
import torch
from PIL import Image
from tiny_lm import IMAGE_SIZE, make_model
from tiny_vila import load_clip_at, make_vila, save_clip
from transformers import PreTrainedTokenizerFast, SiglipTextConfig, SiglipTextModel

from vilau_common.errors import UserError
from vilau_common.pictures import read_picture, squeezed
from vilau_unified_lm.evaluation.public import draw, run
from vilau_unified_lm.evaluation.public.asked import Asked, AskedUnifiedLM, Prompt, open_asked
from vilau_unified_lm.evaluation.public.config import EvaluatePublicConfig
from vilau_unified_lm.evaluation.public.predictions import Predictions
from vilau_unified_lm.evaluation.public.prompts import DrawnPrompt, GenevalConfig, Mjhq, MjhqConfig
from vilau_unified_lm.evaluation.public.run import evaluate_public
from vilau_unified_lm.evaluation.public.seed import SeedConfig
from vilau_unified_lm.evaluation.public.text import TextConfig
from vilau_unified_lm.evaluation.public.vqa import Vqav2Config
from vilau_unified_lm.evaluation.public.yes_no import MmeConfig, PopeConfig
from vilau_unified_lm.evaluation.run import SamplingConfig
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.clip import TextEncoder
from vilau_vision_tower.evaluation.features import FeatureNetwork
from vilau_vision_tower.weights import WeightsMissing


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """line/ with lm/ and the tower's text encoder, and vila/."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saved")
    make_model(vocabulary).save_pretrained(root / "line/lm/model")
    tokenizer.save_pretrained(root / "line/lm/model")
    text = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_size=32,
    )
    encoder = TextEncoder(SiglipTextModel(text), tokenizer)
    encoder.save_pretrained(root / "line/tower/model/text_encoder")
    clip = load_clip_at(save_clip(tmp_path_factory.mktemp("clip"), tokenizer))
    make_vila(clip, tokenizer, kind="mlp", downsample=1).save_pretrained(root / "vila/model")
    tokenizer.save_pretrained(root / "vila/model")
    return root


@pytest.fixture
def line(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved / "line", tmp_path / "line")
    return tmp_path / "line"


def config_for(directory: Path, **settings: Any) -> EvaluatePublicConfig:
    """In batches of two; the tiny model's context has no room for LLaVA's instruction."""
    base: dict[str, Any] = {"device": "cpu", "batch_size": 2, "short_answer": ""}
    return EvaluatePublicConfig(**{"directory": str(directory), "output": str(directory), **base, **settings})


def lines_of(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """How many prompts each call of `answer` had; it fails at that call."""
    calls: list[int] = []
    real = Asked.answer

    def answer(self: Asked, prompts: list[Prompt], max_tokens: int) -> list[str]:
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return real(self, prompts, max_tokens)

    monkeypatch.setattr(Asked, "answer", answer)
    return calls


# --- questions --------------------------------------------------------------------------------------------------


def test_questions_end_to_end(line: Path, tmp_path: Path) -> None:
    data = toys.vqav2(tmp_path / "vqav2")
    numbers = evaluate_public(config_for(line, vqav2=Vqav2Config(directory=str(data))))
    assert numbers["public/vqav2/questions"] == 3
    assert json.loads((line / "results.json").read_text()) == numbers
    place = line / "public/vqav2"
    assert json.loads((place / "results.json").read_text()) == {
        key.removeprefix("public/vqav2/"): value for key, value in numbers.items()
    }
    asked = open_asked(line, "cpu")
    for record, text in zip(lines_of(place), ["is it red?", "how many?", "what is it?"], strict=True):
        picture = read_picture((data / "val2014" / record["picture"]).read_bytes())
        prompt = Prompt(text, (squeezed(picture, IMAGE_SIZE),))
        assert record["text"] == asked.answer([prompt], 16)[0]
        assert record["question"] == text and len(record["expected"]) == 10
    assert [record["id"] for record in lines_of(place)] == ["9000", "9001", "25002"]


def test_a_vila_answers_the_same_questions(saved: Path, tmp_path: Path) -> None:
    data = toys.mme(tmp_path / "mme")
    settings = {"mme": MmeConfig(directory=str(data)), "batch_size": 8, "output": str(tmp_path / "out")}
    numbers = evaluate_public(config_for(saved / "vila", **settings))
    assert 0 <= numbers["public/mme/perception"] <= 2000 and numbers["public/mme/questions"] == 28
    assert (tmp_path / "out/results.json").is_file() and not (saved / "vila/results.json").exists()


def test_multiple_choice_by_likelihood(line: Path, tmp_path: Path) -> None:
    data = toys.seed_bench(tmp_path / "seed")
    evaluate_public(config_for(line, seed_bench=SeedConfig(directory=str(data), answer="likelihood")))
    asked = open_asked(line, "cpu")
    picture = squeezed(read_picture((data / "SEED-Bench-image/1454426_2591111986").read_bytes()), IMAGE_SIZE)
    for record in lines_of(line / "public/seed_bench"):
        losses = [
            float(asked.likelihoods([Prompt(record["question"], (picture,))], [choice])[0].losses.mean())
            for choice in ("one", "two", "three", "four")
        ]
        assert record["losses"] == pytest.approx(losses, rel=1e-4)
        assert record["text"] == "ABCD"[int(np.argmin(losses))]
        assert record["score"] == float(record["text"] == record["expected"])


def test_a_stopped_run_goes_on_where_it_was(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(line, pope=PopeConfig(directory=str(toys.pope(tmp_path / "pope"))))
    whole = evaluate_public(replace(config, output=str(tmp_path / "whole")))
    calls = counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_public(config)
    assert calls == [2, 2]
    # Killed in the middle of a line.
    place = line / "public/pope"
    file = place / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    monkeypatch.undo()
    calls = counted(monkeypatch)
    assert evaluate_public(config) == whole
    assert calls == [2, 1]
    assert "3 of 6 questions were answered before" in capsys.readouterr().out
    assert file.read_text() == (tmp_path / "whole/public/pope/predictions.jsonl").read_text()
    assert evaluate_public(config) == whole and calls == [2, 1]


def test_a_part_is_no_result_and_is_not_asked_again(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(line, pope=PopeConfig(directory=str(toys.pope(tmp_path / "pope"))))
    part = evaluate_public(replace(config, limit=3))
    assert part["public/pope/questions"] == 3 and "public/pope/f1/adversarial" not in part
    assert not (line / "results.json").exists()
    calls = counted(monkeypatch)
    assert evaluate_public(config)["public/pope/questions"] == 6
    assert calls == [2, 1]
    assert evaluate_public(replace(config, limit=3)) == part  # of the six that are there


def test_other_weights_questions_or_settings_are_refused(line: Path, tmp_path: Path) -> None:
    data = toys.pope(tmp_path / "pope")
    config = config_for(line, pope=PopeConfig(directory=str(data)))
    evaluate_public(config)
    with pytest.raises(UserError, match='another configuration .*fit "resize" -> "crop"'):
        evaluate_public(replace(config, fit="crop"))
    with pytest.raises(UserError, match="another configuration .*content"):
        evaluate_public(replace(config, short_answer="?"))
    session = Session.open(line / "lm")
    with torch.no_grad():
        next(session.model.projector.parameters()).add_(1)
    session.model.save_pretrained(line / "lm/model")
    with pytest.raises(UserError, match="another configuration .*model"):
        evaluate_public(config)
    # The data may move.
    shutil.rmtree(line / "public")
    evaluate_public(config)
    data.rename(tmp_path / "moved")
    evaluate_public(replace(config, pope=PopeConfig(directory=str(tmp_path / "moved"))))


def test_a_damaged_picture_is_named_and_what_is_done_kept(line: Path, tmp_path: Path) -> None:
    data = toys.vqav2(tmp_path / "vqav2")
    (data / toys.VAL.format(25)).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"COCO_val2014_000000000025.jpg cannot be read as a picture"):
        evaluate_public(config_for(line, vqav2=Vqav2Config(directory=str(data))))
    assert len(Predictions(line / "public/vqav2/predictions.jsonl").done) == 2


# --- drawings ---------------------------------------------------------------------------------------------------


class MeanColours(FeatureNetwork):
    """Nine numbers of a picture, for want of Inception."""

    suffix = "_toy"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8 and images.shape[-2:] == (draw.FID_SIDE, draw.FID_SIDE)
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def test_drawings_end_to_end(line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "build_features", lambda *arguments: MeanColours())
    sampling = SamplingConfig(guidance=1.5, top_k=None, top_p=1.0)
    config = config_for(
        line, mjhq=MjhqConfig(directory=str(toys.mjhq(tmp_path / "mjhq"))), seed=5, sampling=sampling
    )
    numbers = evaluate_public(config)
    place = line / "public/mjhq"
    assert numbers["public/mjhq/pictures"] == 4
    asked = open_asked(line, "cpu")
    assert isinstance(asked, AskedUnifiedLM)
    records = lines_of(place)
    assert [record["seed"] for record in records] == [5, 6, 7, 8]
    pictures = [np.asarray(Image.open(place / record["picture"])) for record in records]
    expected = asked.session.draw(
        [record["prompt"] for record in records],
        run.Sampling(guidance=1.5, top_k=None, top_p=1.0),
        [5, 6, 7, 8],
    )
    assert np.array_equal(np.stack(pictures), expected)

    # Scores against a slow reference: one picture, one text at a time.
    tower = asked.session.model.vision_tower
    texts = TextEncoder.from_pretrained(line / "tower/model/text_encoder")
    scores = []
    with torch.inference_mode():
        for record, picture in zip(records, pictures, strict=True):
            image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            embedding = tower.pool(tower.quantize(image).z_q)
            scores.append(float(100 * embedding[0] @ texts.embed([record["prompt"]])[0]))
    assert [record["clip_score"] for record in records] == pytest.approx(scores, abs=1e-3)
    assert numbers["public/mjhq/clip_score"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert numbers["public/mjhq/clip_score/art"] == pytest.approx(np.mean(scores[1:3]), abs=1e-3)
    assert numbers["public/mjhq/clip_score_other_prompts"] != pytest.approx(np.mean(scores), abs=1e-6)
    assert numbers["public/mjhq/fid_toy"] > 0
    assert Image.open(place / "drawings.png").width > 3 * IMAGE_SIZE


def test_the_distance_of_a_set_to_itself_is_nothing(tmp_path: Path) -> None:
    prompts = toy_prompts(tmp_path)
    for prompt in prompts:
        toys.write_picture(tmp_path / "out" / prompt.file, int(prompt.id, 16), "PNG")
        assert prompt.reference is not None
        toys.write_picture(prompt.reference, int(prompt.id, 16), "PNG")
    same = draw.distance(MeanColours(), torch.device("cpu"), prompts, tmp_path / "out")
    assert same["fid_toy"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(UserError, match="FID needs 2 pictures at least"):
        draw.distance(MeanColours(), torch.device("cpu"), prompts[:1], tmp_path / "out")


def toy_prompts(root: Path) -> list[DrawnPrompt]:
    return Mjhq(MjhqConfig(directory=str(toys.mjhq(root / "mjhq")))).read()


def test_geneval_as_its_judge_reads_it_and_going_on(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toys.geneval(tmp_path) / "evaluation_metadata.jsonl"
    config = config_for(line, geneval=GenevalConfig(file=str(file), samples=2))
    numbers = evaluate_public(config)
    assert {key for key in numbers if "fid" in key} == set()  # no true pictures
    assert {f"public/geneval/clip_score/{kind}" for kind in ("single_object", "counting", "position")} < set(
        numbers
    )
    drawings = line / "public/geneval/drawings"
    assert sorted(str(path.relative_to(drawings)) for path in drawings.rglob("*.*")) == sorted(
        [f"{n:05}/metadata.jsonl" for n in range(3)]
        + [f"{n:05}/samples/{s:04}.png" for n in range(3) for s in range(2)]
    )
    first = (drawings / "00000/samples/0000.png").read_bytes()
    assert first != (drawings / "00000/samples/0001.png").read_bytes()
    (drawings / "00001/samples/0001.png").unlink()
    asked: list[list[str]] = []
    real = Session.draw

    def watched(self: Session, prompts: list[str], *arguments: Any) -> Any:
        asked.append(list(prompts))
        return real(self, prompts, *arguments)

    monkeypatch.setattr(Session, "draw", watched)
    assert evaluate_public(config) == numbers  # the same picture from the same seed
    assert asked == [["a photo of two cups"]]


def test_what_is_not_computed_says_why(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(*arguments: object) -> FeatureNetwork:
        raise WeightsMissing("Inception is not here")

    monkeypatch.setattr(run, "build_features", lacking)
    shutil.rmtree(line / "tower")
    config = config_for(line, mjhq=MjhqConfig(directory=str(toys.mjhq(tmp_path / "mjhq"))))
    assert evaluate_public(config) == {"public/mjhq/pictures": 4}
    told = json.loads((line / "public/mjhq/not_computed.json").read_text())
    assert told["fid"] == "Inception is not here"
    assert "name the tower's run with tower=DIR" in told["clip_score"]
    assert "not computed: Inception is not here" in capsys.readouterr().out


# --- texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["line", "vila"])
def test_perplexity_of_a_text(saved: Path, tmp_path: Path, kind: str) -> None:
    text = "Two green triangles – und ein roter Kreis.\n" * 4
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    config = config_for(
        saved / kind, text=TextConfig(file=str(file), window=20), output=str(tmp_path / "out")
    )
    numbers = evaluate_public(config)
    asked = open_asked(saved / kind, "cpu")
    ids = asked.builder.ids(text)
    losses = torch.cat([asked.text_losses([ids[i : i + 19]])[0] for i in range(0, len(ids), 19)]).double()
    assert numbers["public/text/tokens"] == len(ids) == len(losses)
    assert numbers["public/text/perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert numbers["public/text/bytes"] == len(text.encode())
    bits = float(losses.sum()) / math.log(2) / len(text.encode())
    assert numbers["public/text/bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    part = evaluate_public(replace(config, limit=2))
    assert part["public/text/tokens"] == 38 and "public/text/bits_per_byte" not in part


# --- mistakes ---------------------------------------------------------------------------------------------------


def test_mistakes_are_told_before_the_model_is_asked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Asked, "answer", lambda *arguments: pytest.fail("the model was asked"))
    file = tmp_path / "text.txt"
    geneval = GenevalConfig(file=str(toys.geneval(tmp_path) / "evaluation_metadata.jsonl"))
    pope = PopeConfig(directory=str(toys.pope(tmp_path / "pope")))
    records = (tmp_path / "pope/coco_pope_random.json").read_text().splitlines()
    (tmp_path / "pope/coco_pope_random.json").write_text("\n".join([records[0], *records]))
    file.write_text("some text")
    vila, line = saved / "vila", saved / "line"
    mistakes: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "no", {}, f"there is no run directory {tmp_path / 'no'}"),
        (line, {}, "no data set is named; name one, such as vqav2.directory="),
        (vila, {"geneval": geneval}, "holds a VILA, which draws nothing"),
        (line, {"pope": pope}, "pope: the id random/1 comes more than once"),
        (line, {"text": TextConfig(file=str(tmp_path / "no.txt"))}, "there is no such file"),
        (
            line,
            {"text": TextConfig(file=str(file), window=999)},
            "text.window is 999, but the model's context",
        ),
        (tmp_path, {"text": TextConfig(file=str(file))}, "no unified LM in"),
        (line, {"geneval": geneval, "sampling": SamplingConfig(guidance=-1.0)}, "guidance is -1.0"),
    ]
    for directory, settings, sentence in mistakes:
        with pytest.raises(UserError, match=re.escape(sentence)):
            evaluate_public(config_for(directory, output=str(tmp_path / "out"), **settings))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        evaluate_public(config_for(line, text=TextConfig(file=str(file))))
    file.write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        evaluate_public(config_for(line, text=TextConfig(file=str(file))))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fit": "fill"}, "fit is 'fill'; it is one of crop, resize, pad"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config_for(tmp_path, **settings)
    with pytest.raises(UserError, match="text.window is 1"):
        TextConfig(window=1)
