"""What cannot be started from is told in one sentence that says what would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clips import (
    OPEN_CLIP_MODELS,
    SIZE,
    clip_tokenizer,
    register_open_clip,
    save_clip,
    save_open_clip,
    save_siglip,
    siglip2_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from vilau_common.errors import UserError
from vilau_vision_tower.clip import TextEncoder, caption_ids, load_pretrained
from vilau_vision_tower.clip.config import OpenClipConfig, SiglipClipConfig


def siglip(pretrained: str | Path) -> Any:
    return load_pretrained(SiglipClipConfig(pretrained=str(pretrained)), SIZE)


def of_open_clip(model: str, pretrained: str | Path) -> Any:
    return load_pretrained(OpenClipConfig(model=model, pretrained=str(pretrained)), SIZE)


@pytest.mark.parametrize("place", ["", "model"])
def test_a_run_of_the_stand_in_or_its_model_may_be_named(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, place: str
) -> None:
    save_siglip(tmp_path / "run" / "model", tokenizer)
    assert siglip(tmp_path / "run" / place).vision_config.image_size == SIZE


def test_the_fingerprint_is_the_files(tmp_path: Path) -> None:
    for saved in (save_clip(tmp_path / "clip"), save_open_clip(tmp_path / "open_clip", "tiny-ViT")):
        before = load_pretrained(saved.config, SIZE).fingerprint
        assert load_pretrained(saved.config, 48).fingerprint == before
        (weights,) = saved.directory.glob("*.safetensors")
        state = load_file(weights)
        save_file({**state, "logit_scale": state["logit_scale"] + 1}, weights, metadata={"format": "pt"})
        assert load_pretrained(saved.config, SIZE).fingerprint != before


def test_without_a_hub_it_says_which_files_to_bring() -> None:
    with pytest.raises(
        UserError,
        match=r"no CLIP in google/siglip-large-patch16-256: .* hf download google/siglip-large-patch16-256 .*"
        r"model.safetensors, tokenizer.json.* tower.clip.pretrained",
    ):
        siglip("google/siglip-large-patch16-256")
    with pytest.raises(
        UserError,
        match=r"ViT-B-16-SigLIP-256, tag webli, .* bring open_clip_model.safetensors of timm/ViT-B-16-SigLIP-256 on "
        r"the Hugging Face hub .* tower.clip.pretrained to that directory",
    ):
        of_open_clip("ViT-B-16-SigLIP-256", "webli")


def test_what_is_no_clip_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP in nowhere: .*`make train-clip` trains the small stand-in"):
        siglip("nowhere")
    for family, sentence in (
        ("siglip2", "of variable resolution .*; take one of fixed resolution"),
        ("bert", "is of type 'bert'; a tower starts from siglip or clip"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(UserError, match=sentence):
            siglip(tmp_path)


@pytest.mark.parametrize("size", [0, 7])
def test_pictures_smaller_than_a_patch_are_refused(size: int, tmp_path: Path) -> None:
    saved = save_clip(tmp_path / "clip")
    with pytest.raises(UserError, match=f"data.image_size is {size}, but a patch of the CLIP has 8 pixels"):
        load_pretrained(saved.config, size)


def test_weights_that_lack_some_are_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    saved = save_clip(tmp_path / "clip")
    weights = saved.directory / "model.safetensors"
    state = load_file(weights)
    del state["visual_projection.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 of the model's, among them visual_projection\.weight"):
        load_pretrained(saved.config, SIZE)


@pytest.mark.parametrize(
    ("model", "pretrained", "sentence"),
    [
        ("RN50", "openai", "RN50 is a ResNet, which has no grid of tokens"),
        (
            "convnext_base",
            "x",
            "its image tower is a ConvNeXt, but a vision tower needs a plain vision transformer",
        ),
        ("EVA02-B-16", "x", "its image tower is a Eva, but"),
        ("coca_ViT-B-32", "x", "is a CoCa"),
        ("roberta-ViT-B-32", "x", "has the text encoder roberta-base"),
        ("ViT-B-61", "openai", r"'ViT-B-61' is no model of open_clip; did you mean .*ViT-B-16"),
        (
            "ViT-B-16",
            "opnai",
            r"'opnai' is neither a file nor a directory here nor a tag of ViT-B-16 \(.*openai",
        ),
        ("ViT-B-32", "openai", "another GELU than ViT-B-32: set tower.clip.model=ViT-B-32-quickgelu"),
    ],
)
def test_open_clip_models_that_cannot_be_taken(model: str, pretrained: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        of_open_clip(model, pretrained)


def test_open_clip_files_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("tiny-timm-SigLIP", "tiny-timm-class-token"):
        (weights,) = save_open_clip(tmp_path / name, name).directory.glob("*.safetensors")
        with pytest.raises(UserError, match=r"model.safetensors is no checkpoint of open_clip's tiny-ViT: "):
            of_open_clip("tiny-ViT", weights)
    with pytest.raises(
        UserError, match=r"no open_clip weights in .*: expected open_clip_model.safetensors or"
    ):
        of_open_clip("tiny-ViT", tmp_path)
    with pytest.raises(UserError, match=r"tokenizer nobody/has-this .* bring its tokenizer.json .* beside"):
        of_open_clip("tiny-timm-SigLIP", weights)
    pickled = tmp_path / "pickled.pt"
    torch.save({"state_dict": Path("a")}, pickled)
    with pytest.raises(UserError, match=r"pickled.pt is no checkpoint"):
        of_open_clip("tiny-ViT", pickled)


def test_a_files_pixel_statistics_are_told_beside_it_or_shared_by_all_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import pretrained

    register_open_clip(tmp_path / "models")
    model = open_clip.create_model("tiny-ViT")
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    tags = {"one": {"mean": (0.1,) * 3, "std": (0.2,) * 3}, "two": {"mean": (0.1,) * 3, "std": (0.2,) * 3}}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-ViT", tags)
    assert of_open_clip("tiny-ViT", weights).image_mean == [0.1] * 3
    tags["two"] = {"mean": (0.3,) * 3, "std": (0.2,) * 3}
    with pytest.raises(
        UserError, match=r"differ in how they normalise pixels: put the open_clip_config.json of"
    ):
        of_open_clip("tiny-ViT", weights)
    beside = {
        "model_cfg": OPEN_CLIP_MODELS["tiny-ViT"],
        "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    assert of_open_clip("tiny-ViT", weights).image_mean == [0.4] * 3


@pytest.mark.parametrize("name", ["Siglip2Tokenizer", "GemmaTokenizerFast"])
def test_siglip_2_reads_captions_in_lower_case_as_it_was_trained(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    """Also where its published tokenizer.json, Gemma's, leaves that to the caller; and once saved with a tower."""
    oracle = siglip2_tokenizer()
    directory = save_siglip(tmp_path / "clip", tokenizer).directory
    oracle.save_pretrained(directory)
    saved, settings = (
        json.loads((directory / f"tokenizer{part}.json").read_text()) for part in ("", "_config")
    )
    saved["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    (directory / "tokenizer.json").write_text(json.dumps(saved))
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": name}))
    mixed, lower = "A Red Circle", "a red circle"
    expected = oracle(mixed)["input_ids"]
    assert oracle(lower)["input_ids"] == expected
    plain = PreTrainedTokenizerFast.from_pretrained(directory)
    assert plain(mixed)["input_ids"] != expected, "the file alone does not"
    text = siglip(directory).text
    text.save_pretrained(tmp_path / "tower")
    for encoder in (text, TextEncoder.from_pretrained(tmp_path / "tower")):
        ids = caption_ids(encoder.tokenizer, [mixed, lower], encoder.length)
        assert torch.equal(ids[0], ids[1])
        assert [token for token in ids[0].tolist() if token not in (0, 1)] == expected


def test_other_tokenizers_are_left_as_they_are(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_siglip(tmp_path, tokenizer)
    ids = caption_ids(siglip(tmp_path).text.tokenizer, ["A Red Circle", "a red circle"], 24)
    assert torch.equal(ids, caption_ids(tokenizer, ["A Red Circle", "a red circle"], 24))
    assert not torch.equal(ids[0], ids[1])


def test_clips_tokenizer_ends_a_caption_once(tmp_path: Path) -> None:
    tokenizer = clip_tokenizer()
    ids = caption_ids(tokenizer, ["a red circle"], 30)[0].tolist()
    words = tokenizer.encode("a red circle")
    assert words[-1] == tokenizer.eos_token_id
    assert ids == words + [tokenizer.pad_token_id] * (30 - len(words))
    assert caption_ids(tokenizer, ["a red circle " * 9], 8)[0, -1] == tokenizer.eos_token_id
