"""A byte-level BPE trained on a data set's own texts, for models built from scratch.

Byte level, so that every prompt a user types has ids; models that start from pretrained weights bring their
own tokenizer instead. After the words, merging may go on across the spaces between them (SuperBPE, Liu et al. 2025,
arXiv 2503.13423, section 2): "is there a" and "at the top left" then are one token each, and sequences shorter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vilau_common.errors import UserError

PAD, BEGIN, END = SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
SPACE = "\u0120"  # how byte-level BPE writes the space in front of a word
# The commonest phrases show in few texts; counting them in all would take longer than the rest of the preparation.
TEXTS_FOR_SUPERWORDS = 50_000


def check_sizes(vocabulary_size: int, superwords: int) -> None:
    """Raises UserError where a vocabulary has no room for single bytes, special tokens and so many superwords."""
    least = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)
    if not 0 <= superwords <= vocabulary_size - least:
        raise UserError(
            f"superwords is {superwords} and vocabulary_size {vocabulary_size}: superwords may be 0 to "
            f"vocabulary_size - {least} (bytes and special tokens)"
        )


def train_text_tokenizer(
    texts: Sequence[str], directory: Path, vocabulary_size: int, superwords: int = 0
) -> PreTrainedTokenizerFast:
    """Trains on `texts` and saves to `directory` what AutoTokenizer reads. Ids 0, 1, 2 are pad, begin, end.

    superwords: so many of the tokens span words, as far as the texts have phrases. Raises what `check_sizes` does.
    """
    check_sizes(vocabulary_size, superwords)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - superwords,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if superwords:
        tokenizer = _with_superwords(tokenizer, texts[:TEXTS_FOR_SUPERWORDS], superwords)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)
    fast.save_pretrained(directory)
    return fast


def _with_superwords(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> Tokenizer:
    """The same tokenizer with up to `count` more merges, of neighbours of which the second begins a word."""
    sequences = [(encoding.tokens, number) for encoding, number in _encoded(tokenizer, texts)]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for tokens, number in sequences:
            for pair in pairwise(tokens):
                # Phrases end at punctuation: what follows a full stop says nothing of what came before.
                if pair[1].startswith(SPACE) and _ends_in_a_word(pair[0]):
                    pairs[pair] += number
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        sequences = [(_merged(tokens, best), number) for tokens, number in sequences]
    state = json.loads(tokenizer.to_str())
    for left, right in merges:
        state["model"]["merges"].append([left, right])
        state["model"]["vocab"].setdefault(left + right, len(state["model"]["vocab"]))
    # Earlier merges never join words, so they do without the split into words that would forbid the later ones.
    state["pre_tokenizer"]["use_regex"] = False
    return Tokenizer.from_str(json.dumps(state))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[Encoding, int]]:
    """Every different text once, encoded, and how often it comes."""
    counted = Counter(texts)
    return list(zip(tokenizer.encode_batch(list(counted)), counted.values(), strict=True))


@cache
def _ends_in_a_word(token: str) -> bool:
    """Whether its last character is a letter or digit; part of a character is neither."""
    text: str = decoders.ByteLevel().decode([token])
    return text[-1:].isalnum()


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """`tokens` with every `pair` joined, from left to right."""
    if pair[0] not in tokens:
        return tokens
    result: list[str] = []
    for token in tokens:
        if result and (result[-1], token) == pair:
            result[-1] += token
        else:
            result.append(token)
    return result
