"""A released checkpoint, converted, behind Hugging Face's interface: the prompts and answers of `Session`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vilau_common.images import to_array
from vilau_unified_lm.convert.read import convert_from_official
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.native.model import VilaUForMultimodalLM
from vilau_unified_lm.native.processor import VilaUProcessor
from vilau_unified_lm.session import Session

CASE = Path(__file__).parents[1] / "assets" / "parity" / "shared_codebook"
QUESTION, PROMPT = "What is this?", "a red circle"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_from_official(CASE, tmp_path_factory.mktemp("official") / "model")


def test_it_answers_and_draws_as_the_session_does(converted: Path) -> None:
    session = Session.open(converted, dtype=torch.float32)
    model = VilaUForMultimodalLM.from_pretrained(converted, dtype=torch.float32)
    processor = VilaUProcessor.from_pretrained(converted)
    size = processor.image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    shown = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template([{"role": "user", "content": shown}], return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=6)
    (answer,) = processor.post_process_multimodal_output(ids[:, inputs["input_ids"].shape[1] :])
    assert answer.strip() == session.answer(list(session.encode(picture[None])), [QUESTION], 6)[0]

    message = [{"role": "user", "content": PROMPT}]
    inputs = processor.apply_chat_template(message, return_dict=True, generation_mode="image")
    drawn = model.generate(**inputs, generation_mode="image", seed=1)
    expected = session.draw([PROMPT], Sampling(), [1])  # VILA-U's own settings, guided from its blank prompt
    assert np.array_equal(to_array(model.decode_image_tokens(drawn)), expected)
