"""The CLIP stand-in, captions as it reads them, and the frozen text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_tower import IMAGE_SIZE, TEXT_LENGTH, WIDTH, stand_in_config, tiny_clip
from transformers import PreTrainedTokenizerFast, SiglipModel

from vilau_common.errors import UserError
from vilau_vision_tower.clip import TextEncoder, build_clip, caption_ids, load_clip

CAPTIONS = ["a red circle", "nothing else, but in a green and blue square"]


def test_captions_end_and_are_padded(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = caption_ids(tokenizer, [*CAPTIONS, ""], 40)
    assert ids.dtype == torch.int64
    assert ids.shape == (3, 40)
    for row, caption in zip(ids.tolist(), [*CAPTIONS, ""], strict=True):
        words = tokenizer.encode(caption)
        assert row == [*words, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (39 - len(words))


def test_long_captions_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = caption_ids(tokenizer, CAPTIONS, 5)
    assert ids.tolist() == [tokenizer.encode(caption)[:5] for caption in CAPTIONS]


def test_the_stand_in_has_the_sizes_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_clip(stand_in_config(), IMAGE_SIZE, tokenizer)
    ids = caption_ids(tokenizer, CAPTIONS, TEXT_LENGTH)
    assert model.get_text_features(ids).pooler_output.shape == (2, WIDTH)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert model.get_image_features(images).pooler_output.shape == (2, WIDTH)
    assert len(model.vision_model.encoder.layers) == 3
    assert len(model.text_model.encoder.layers) == 2
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_patches_must_tile_the_image(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"clip.patch_size is 8, which does not divide the images' 36 pixels"):
        build_clip(stand_in_config(), 36, tokenizer)


def test_text_embeddings_are_clips(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(clip.text_model, tokenizer)
    ids = caption_ids(tokenizer, CAPTIONS, TEXT_LENGTH)
    expected = F.normalize(clip.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(encoder(ids), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.embed(CAPTIONS), expected, rtol=0, atol=1e-6)
    assert encoder.length == TEXT_LENGTH


def test_the_text_encoder_is_frozen(clip: SiglipModel, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(clip.train().text_model, tokenizer)
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not encoder.model.training
    assert not encoder.embed(CAPTIONS).requires_grad


def test_text_encoder_saved_and_loaded_is_the_same(
    clip: SiglipModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = TextEncoder(clip.text_model, tokenizer)
    encoder.save_pretrained(tmp_path)
    loaded = TextEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.embed(CAPTIONS), encoder.embed(CAPTIONS))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_clip_saved_and_loaded_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    clip = tiny_clip(tokenizer)
    clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_clip(tmp_path)
    for name, value in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded_tokenizer.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0])
    assert loaded_tokenizer.eos_token_id == tokenizer.eos_token_id


def test_what_is_missing_is_told_in_a_sentence(clip: SiglipModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP in .*; `make train-clip` trains the small stand-in"):
        load_clip(tmp_path)
    with pytest.raises(UserError, match="no text encoder in"):
        TextEncoder.from_pretrained(tmp_path)
    clip.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no text tokenizer in"):
        load_clip(tmp_path)
