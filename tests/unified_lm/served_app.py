"""The page of a tiny random model, served: for the tests of the app, by client and by browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tiny_lm import make_model
from transformers import PreTrainedTokenizerFast

from vilau_unified_lm.app.page import page, style
from vilau_unified_lm.app.studio import Studio
from vilau_unified_lm.evaluation.run import SamplingConfig
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary

SAMPLING = SamplingConfig(temperature=0.5, top_k=None, top_p=0.9, guidance=2.0)


@contextmanager
def served(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Iterator[tuple[Studio, str]]:
    """(what stands behind the page, its address)."""
    studio = Studio(Session(make_model(vocabulary), tokenizer))
    blocks = page(studio, "tiny", SAMPLING, together=False, forms=("questions", "text_to_image"))
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, **style(studio))
    try:
        yield studio, address
    finally:
        blocks.close()
