"""The extended vocabulary's arithmetic, and which tokenizers it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_lm import CAPTIONS, D, K
from transformers import PreTrainedTokenizerFast

from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.errors import UserError
from vilau_unified_lm.vocabulary import SPECIAL_TOKENS, Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer


@pytest.mark.parametrize(("size", "depth"), [(K, D), (1, 1), (16384, 16)])
def test_visual_ids_and_codes_are_each_others_inverse(vocabulary: Vocabulary, size: int, depth: int) -> None:
    vocabulary = replace(vocabulary, codebook_size=size, depth=depth)
    codes = torch.randint(size, (5, 7, depth))
    assert torch.equal(vocabulary.codes(vocabulary.visual_ids(codes)), codes)


def test_every_code_of_every_depth_has_an_id_of_its_own_behind_the_text(vocabulary: Vocabulary) -> None:
    ids = vocabulary.visual_ids(torch.arange(K).unsqueeze(1).expand(K, D))
    assert sorted(ids.flatten().tolist()) == list(range(vocabulary.text_size, vocabulary.size))
    assert ids[5, 2] == vocabulary.text_size + 2 * K + 5


def test_text_size_counts_the_special_tokens(
    vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerFast
) -> None:
    specials = [
        vocabulary.image_start,
        vocabulary.image_end,
        vocabulary.video_start,
        vocabulary.video_end,
        vocabulary.begin,
        vocabulary.end,
        vocabulary.pad,
    ]
    assert len(set(specials)) == len(specials)
    assert max(specials) < vocabulary.text_size
    everything = tokenizer("a red circle" + "".join(SPECIAL_TOKENS), add_special_tokens=False)["input_ids"]
    assert max(everything) < vocabulary.text_size
    assert everything[-4:] == specials[:4]


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    plain = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    with pytest.raises(
        UserError, match=r"lacks <image_start>, <image_end>, <video_start>, <video_end>; add them"
    ):
        Vocabulary.from_tokenizer(plain, K, D)
    plain.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[:3])})
    with pytest.raises(UserError, match="lacks <video_end>;"):
        Vocabulary.from_tokenizer(plain, K, D)


def test_unknown_words_do_not_pass_for_special_tokens(tmp_path: Path) -> None:
    """A tokenizer with an <unk> gives that id for any missing token."""
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    with pytest.raises(UserError, match="lacks <image_start>"):
        Vocabulary.from_tokenizer(tokenizer, K, D)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    add_special_tokens(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="lacks an end-of-text token"):
        Vocabulary.from_tokenizer(tokenizer, K, D)


def test_a_missing_begin_or_pad_is_the_end(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    add_special_tokens(tokenizer)
    tokenizer.bos_token = tokenizer.pad_token = None
    vocabulary = Vocabulary.from_tokenizer(tokenizer, K, D)
    assert vocabulary.begin == vocabulary.pad == vocabulary.end


def test_special_tokens_are_added_once_and_survive_saving(tmp_path: Path, vocabulary: Vocabulary) -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path / "plain", vocabulary_size=280)
    assert add_special_tokens(tokenizer) == tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert add_special_tokens(tokenizer) == []
    tokenizer.save_pretrained(tmp_path / "special")
    loaded = load_text_tokenizer(tmp_path / "special")
    assert add_special_tokens(loaded) == []
    assert Vocabulary.from_tokenizer(loaded, K, D) == Vocabulary.from_tokenizer(tokenizer, K, D)
    text = "a red circle"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_pretrained_tokenizers_own_special_tokens_stay_special(tmp_path: Path) -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    add_special_tokens(tokenizer)
    ids = tokenizer("<|im_start|> a red circle<image_start>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red circle"


def test_ids_that_a_tokenizer_leaves_out_count(tmp_path: Path) -> None:
    """The embedding has a row for every id up to the last."""
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=280)
    add_special_tokens(tokenizer)
    known = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: {**known, "far": 1000}
    assert Vocabulary.from_tokenizer(tokenizer, K, D).text_size == 1001
