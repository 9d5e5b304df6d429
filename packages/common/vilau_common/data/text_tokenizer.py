"""A byte-level BPE trained on a data set's own texts, for models built from scratch.

Byte level, so that every prompt a user types has ids; models that start from pretrained weights bring their
own tokenizer instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END = "<pad>", "<s>", "</s>"


def train_text_tokenizer(
    texts: Iterable[str], directory: Path, vocabulary_size: int
) -> PreTrainedTokenizerFast:
    """Trains on `texts` and saves to `directory` what AutoTokenizer reads. Ids 0, 1, 2 are pad, begin, end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)
    fast.save_pretrained(directory)
    return fast
