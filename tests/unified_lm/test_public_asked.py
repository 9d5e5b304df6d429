"""A model as an evaluation asks it: answers, likelihoods and texts, against the session and plain forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_lm import CONTEXT, D, make_model
from tiny_vila import load_clip_at, make_vila, random_picture, save_clip
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vilau_common.data.conversation import ASSISTANT, USER, Turn
from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.asked import Asked, AskedUnifiedLM, AskedVila, Prompt, open_asked
from vilau_unified_lm.packing import IGNORE, MixedSequence, pack
from vilau_unified_lm.session import Session
from vilau_unified_lm.vila.session import VilaSession
from vilau_unified_lm.vocabulary import Vocabulary

PICTURES = [random_picture(seed) for seed in range(3)]
ASKED = ["how many?", "is there a red circle?", "what is it?"]


@pytest.fixture(scope="module")
def session(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerFast) -> Session:
    return Session(make_model(vocabulary), tokenizer)


@pytest.fixture(scope="module")
def vila(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> VilaSession:
    clip = load_clip_at(save_clip(tmp_path_factory.mktemp("clip"), tokenizer))
    return VilaSession(make_vila(clip, tokenizer, kind="mlp", downsample=1), tokenizer)


@pytest.fixture(params=["unified_lm", "vila"])
def asked(request: pytest.FixtureRequest, session: Session, vila: VilaSession) -> Asked:
    return AskedUnifiedLM(session) if request.param == "unified_lm" else AskedVila(vila)


def prompts() -> list[Prompt]:
    return [Prompt(text, (picture,)) for text, picture in zip(ASKED, PICTURES, strict=True)]


def test_answers_are_the_sessions(session: Session, vila: VilaSession) -> None:
    expected = session.answer(list(session.encode(np.stack(PICTURES))), ASKED, 6)
    assert AskedUnifiedLM(session).answer(prompts(), 6) == expected
    assert AskedVila(vila).answer(prompts(), 6) == vila.answer(PICTURES, ASKED, 6)


def test_prompts_with_no_picture_and_with_several(asked: Asked) -> None:
    several = Prompt("which?", (PICTURES[0], PICTURES[1]))
    bare = Prompt("which?")
    alone = [asked.answer([prompt], 5)[0] for prompt in (several, bare, prompts()[0])]
    assert asked.answer([several, bare, prompts()[0]], 5) == alone
    placed = Prompt("<image>which?<image>", (PICTURES[0], PICTURES[1]))
    before, between = asked.likelihoods([several, placed], ["red", "red"])
    assert not torch.allclose(before.losses, between.losses)
    swapped = Prompt("which?", (PICTURES[1], PICTURES[0]))
    assert not torch.allclose(asked.likelihoods([swapped], ["red"])[0].losses, before.losses)


def test_likelihoods_are_a_plain_forward_pass(session: Session) -> None:
    asked = AskedUnifiedLM(session)
    answers = ["two", "a large star", "red"]
    found = asked.likelihoods(prompts(), answers)
    codes = session.encode(np.stack(PICTURES))
    for code, text, answer, likelihood in zip(codes, ASKED, answers, found, strict=True):
        turns = [Turn(USER, "<image>" + text), Turn(ASSISTANT, answer)]
        document = session.builder.conversation(turns, [code])
        batch = pack([[document]], len(document), D)
        targets = batch.text_targets[batch.text_targets != IGNORE]
        with torch.inference_mode():
            logits = session.model.logits(batch).text
        losses = F.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(likelihood.losses, losses, atol=1e-5, rtol=1e-5)
        assert len(losses) == len(session.builder.ids(answer)) + 1


def test_the_greedy_answer_is_told(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(sequence: MixedSequence, prompts: object) -> Tensor:
        """Those of a model that writes every answer as given, but would not close the last one."""
        targets = sequence.text_targets[sequence.text_targets != IGNORE].clone()
        targets[-1] += 1
        return 20 * F.one_hot(targets, 2 * len(asked.builder.tokenizer)).float()

    monkeypatch.setattr(asked, "_logits", logits)
    found = asked.likelihoods(prompts(), ["two", "a red star", "one"])
    assert [likelihood.greedy for likelihood in found] == [True, True, False]
    assert float(found[1].losses.max()) < 1e-3 < float(found[2].losses[-1])


def test_losses_of_texts_do_not_depend_on_the_batch(asked: Asked) -> None:
    texts = [asked.builder.ids(text) for text in ("a red circle", "two", "a large yellow star below")]
    together = asked.text_losses(texts)
    for ids, losses in zip(texts, together, strict=True):
        assert len(losses) == len(ids)
        torch.testing.assert_close(losses, asked.text_losses([ids])[0], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_asked(asked: Asked) -> None:
    with pytest.raises(UserError, match=f"the model's context holds {CONTEXT}"):
        asked.answer([Prompt("how many? " * 40)], 4)
    with pytest.raises(UserError, match=f"the model's context holds {CONTEXT}; shorten the prompt"):
        asked.likelihoods([Prompt("how many? " * 40)], ["two"])
    with pytest.raises(UserError, match="cannot be asked: 1 image, but 2 <image> in the text"):
        asked.answer([Prompt("<image> or <image>?", (PICTURES[0],))], 4)
    with pytest.raises(UserError, match="cannot be asked"):
        asked.answer([Prompt("what of the <video>?")], 4)


def test_opening_either_kind_of_run(
    tmp_path: Path, session: Session, vila: VilaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, opened in (("lm", session), ("vila", vila)):
        opened.model.save_pretrained(tmp_path / kind / "model")
        opened.text_tokenizer.save_pretrained(tmp_path / kind / "model")
    (tmp_path / "line").mkdir()
    (tmp_path / "lm").rename(tmp_path / "line" / "lm")
    assert open_asked(tmp_path / "line", "cpu").answer(prompts(), 4) == AskedUnifiedLM(session).answer(
        prompts(), 4
    )
    assert open_asked(tmp_path / "vila", "cpu").answer(prompts(), 4) == AskedVila(vila).answer(prompts(), 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for run in ("line", "vila"):
        with pytest.raises(UserError, match="device is cuda, but torch finds no GPU here"):
            open_asked(tmp_path / run, "cuda")
