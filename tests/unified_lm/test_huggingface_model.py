"""The forward pass of the Hugging Face class, and models on disk: written, read, refused."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from native import RESULTS, make_exported, random_pictures
from safetensors.torch import load_file, save_file
from tiny_lm import D, K, make_model, objective
from torch import nn
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig, PreTrainedTokenizerFast

import vilau_unified_lm.auto
from vilau_common.data.conversation import ASSISTANT, IMAGE, USER, Turn
from vilau_common.errors import UserError
from vilau_unified_lm.cli import main
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.huggingface.export import export
from vilau_unified_lm.huggingface.tokens import prompt_ids
from vilau_unified_lm.packing import pack
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary

AUTO = vilau_unified_lm.auto
PARITY = Path(__file__).parents[1] / "assets" / "parity"
PICTURES = random_pictures(0, 2)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> Path:
    return make_exported(tmp_path_factory.mktemp("native"), tokenizer, vocabulary)


@pytest.fixture
def model(out: Path) -> Any:
    return AutoModelForMultimodalLM.from_pretrained(out)


@pytest.fixture(scope="module")
def batch(out: Path) -> dict[str, Any]:
    """Two conversations of different lengths with their labels; one answer is a picture."""
    chats = [
        [said("user", PICTURES[0], "how many objects?"), said("assistant", "two", PICTURES[1])],
        [said("user", "a red circle"), said("assistant", "no")],
    ]
    processor = AutoProcessor.from_pretrained(out)
    inputs = processor.apply_chat_template(chats, generation_mode="text", return_assistant_tokens_mask=True)
    learned = inputs.pop("assistant_masks").bool()
    return {**inputs, "labels": inputs["input_ids"].masked_fill(~learned, -100)}


def said(role: str, *parts: Any) -> dict[str, Any]:
    kinds = [(part, "text" if isinstance(part, str) else "image") for part in parts]
    return {"role": role, "content": [{"type": kind, kind: part} for part, kind in kinds]}


def test_losses_and_logits_are_those_of_training(model: Any, out: Path, batch: dict[str, Any]) -> None:
    """Of the same documents, packed as trainings pack them: the mean over text tokens plus that over visual ones."""
    session = Session.open(out.parent / "run")
    codes = session.encode(PICTURES)
    turns = [[Turn(USER, f"{IMAGE}how many objects?"), Turn(ASSISTANT, f"two{IMAGE}")]]
    turns += [[Turn(USER, "a red circle"), Turn(ASSISTANT, "no")]]
    documents = [
        session.builder.conversation(turns[0], list(codes)),
        session.builder.conversation(turns[1]),
    ]
    packed = pack([documents], sum(map(len, documents)), D)
    expected = objective(session.model, packed)
    found = model(**batch)
    assert torch.allclose(found.loss, expected.total, rtol=1e-5)
    assert torch.allclose(found.text_loss, expected.text) and torch.allclose(
        found.visual_loss, expected.visual
    )
    logits = session.model.text_logits(session.model.hidden_states(packed)[0])[0]
    kept = batch["attention_mask"].bool()
    assert torch.allclose(found.logits[kept], logits, atol=1e-4)
    found.loss.backward()
    names = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert names == {"llm", "projector", "depth"}


def test_the_compiled_forward_has_no_graph_break(model: Any, batch: dict[str, Any]) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected, found = model(**batch), compiled(**batch)
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)


def test_lora_attaches_by_name(model: Any, out: Path, batch: dict[str, Any], tmp_path: Path) -> None:
    before = model(**batch).loss.item()
    config = peft.LoraConfig(r=4, target_modules=r"llm\..*\.(q_proj|v_proj)", init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    trained = [name for name, weight in tuned.named_parameters() if weight.requires_grad]
    assert len(trained) == 8 and all(".llm." in name for name in trained)
    after = tuned(**batch).loss
    assert abs(after.item() - before) > 1e-3
    after.backward()
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(out), tmp_path)
    assert torch.allclose(again(**batch).loss, after)
    prompt = {name: batch[name][1:] for name in ("input_ids", "attention_mask")}
    assert torch.equal(tuned.generate(**prompt, max_new_tokens=4), again.generate(**prompt, max_new_tokens=4))


def test_what_is_saved_is_loaded(model: Any, batch: dict[str, Any], tmp_path: Path) -> None:
    with torch.no_grad():
        model.llm.get_output_embeddings().weight.mul_(1.1)
    model.save_pretrained(tmp_path)
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert (tmp_path / "model.safetensors").is_file()
    assert again.generation_config.vocabulary == model.generation_config.vocabulary
    assert again.generation_config.visual == model.generation_config.visual


def test_what_export_writes(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["UnifiedLMForConditionalGeneration"]
    generation = GenerationConfig.from_pretrained(out)
    assert (
        generation.visual["guidance"] == 2.0 and generation.visual["top_k"] == 8
    )  # as the run was evaluated
    card = (out / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "license": "cc0-1.0",
        "pipeline_tag": "any-to-any",
        "tags": ["vila-u"],
    }
    for name, value in RESULTS.items():
        assert f"| `{name}` | {value} |" in body
    assert "- the LM: codes\n- the tower: scenes\n" in body and "steps: 7" in body
    assert "/somewhere" not in card and str(out.parent) not in card
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")


def test_the_command(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = out.parent / "run"
    assert main(["export", str(run / "tower"), str(tmp_path / "tower"), "--license", "mit"]) == 0
    assert (tmp_path / "tower" / "preprocessor_config.json").is_file()
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "tower")]) == 2
    assert f"{tmp_path / 'tower'} exists" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "x")]) == 2
    assert "no unified LM in" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_an_official_checkpoint(tmp_path: Path) -> None:
    """Its own prompts, and codes of its own tower."""
    source = PARITY / "shared_codebook"
    export(source, tmp_path / "out", "not-stated")
    session = Session.open(source)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    size = model.image_tokenizer.image_size
    picture = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
    inputs = processor(text="what is this?", images=picture, generation_mode="text")
    ids = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    answer = session.answer(list(session.encode(picture[None])), ["what is this?"], 6)
    assert processor.post_process_multimodal_output(ids) == answer
    inputs = processor(text="a red barn", generation_mode="image")
    ids = model.generate(**inputs, generation_mode="image", do_sample=False)
    builder = session.builder
    prompt, blank = builder.drawing_prompt("a red barn"), builder.drawing_prompt("")
    assert inputs["negative_prompt_ids"][0].tolist() == list(blank.segments[0].ids)
    codes = session.engine.draw([prompt], blank, Sampling(temperature=0), [0])
    assert torch.equal(ids[0], session.builder.vocabulary.visual_ids(codes[0]).flatten())
    card = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert card["license"] == "other" and card["license_name"] == "not-stated"


def test_a_chat_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A pretrained backbone's: prompts are written by it, and what ends its answers ends ours."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    chatty.chat_template = CHATML
    model = make_model(Vocabulary.from_tokenizer(chatty, K, D))
    model.save_pretrained(tmp_path / "run" / "model")
    chatty.save_pretrained(tmp_path / "run" / "model")
    export(tmp_path / "run", tmp_path / "out", "mit")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    native = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    assert native.generation_config.eos_token_id[0] == chatty.convert_tokens_to_ids("<|im_end|>")
    session = Session.open(tmp_path / "run")
    inputs = processor(text="how many?", images=PICTURES[0], generation_mode="text")
    prompt = session.builder.question_prompt(session.encode(PICTURES[:1])[0], "how many?")
    assert inputs["input_ids"][0].tolist() == prompt_ids(prompt, session.builder.vocabulary)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("missing", "1 of the weights are missing, among them projector.mlp"),
        ("surplus", "1 of the weights have no place in its config.json's model, among them something"),
        (
            "shape",
            r"depth.positions has the shape \[3, 24\], but by the config.json beside it, it is \[4, 24\]",
        ),
        ("cut", "model.safetensors is cut off"),
        ("gone", "no weights in"),
    ],
)
def test_weights_that_are_not_whole(out: Path, tmp_path: Path, change: str, sentence: str) -> None:
    broken = shutil.copytree(out, tmp_path / "broken")
    file = broken / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors[next(name for name in tensors if name.startswith("projector."))]
    elif change == "surplus":
        tensors["something"] = torch.zeros(1)
    elif change == "shape":
        tensors["depth.positions"] = tensors["depth.positions"][1:].clone()
    save_file(tensors, file, {"format": "pt"})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "gone":
        file.unlink()
    with pytest.raises(UserError, match=sentence):
        AutoModelForMultimodalLM.from_pretrained(broken)


def test_a_directory_without_the_names_of_tokens(out: Path) -> None:
    """A run's own model/ directory has weights, but does not say what `generate` must know."""
    model = AutoModelForMultimodalLM.from_pretrained(out.parent / "run" / "lm" / "model")
    with pytest.raises(UserError, match="does not name its tokens; write its directory with `vilau export`"):
        model.generate(torch.tensor([[1, 5]]))


def test_importing_the_package_does_not_import_transformers() -> None:
    """The help of `vilau` would pay for it."""
    code = "import sys, vilau_unified_lm, vilau_vision_tower; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_of_another_shape_where_asked_for(out: Path, tmp_path: Path) -> None:
    other = shutil.copytree(out, tmp_path / "other")
    file = other / "model.safetensors"
    tensors = load_file(file)
    tensors["depth.positions"] = tensors["depth.positions"][1:].clone()
    save_file(tensors, file, {"format": "pt"})
    model = AutoModelForMultimodalLM.from_pretrained(other, ignore_mismatched_sizes=True)
    assert isinstance(model, nn.Module)
