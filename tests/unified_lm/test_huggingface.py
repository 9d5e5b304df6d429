"""Messages in, strings and pictures out: what comes through transformers' interface is what a session gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import make_exported, random_pictures
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, POSITIONS, D, last_hidden
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TextStreamer,
    pipeline,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

import vilau_unified_lm.auto
from vilau_common.data.conversation import ASSISTANT, IMAGE, USER, Turn
from vilau_common.errors import UserError
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.huggingface.model import UnifiedLMForConditionalGeneration
from vilau_unified_lm.huggingface.processor import UnifiedLMProcessor
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary

AUTO = vilau_unified_lm.auto
EVALUATED = Sampling(temperature=1.3, top_k=8, top_p=0.95, guidance=2.0)
QUESTION = "how many objects?"
PICTURES = random_pictures(0, 3)


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> Path:
    return make_exported(tmp_path_factory.mktemp("native"), tokenizer, vocabulary)


@pytest.fixture(scope="module")
def session(out: Path) -> Session:
    return Session.open(out.parent / "run")


@pytest.fixture(scope="module")
def processor(out: Path) -> UnifiedLMProcessor:
    return AutoProcessor.from_pretrained(out)


@pytest.fixture(scope="module")
def model(out: Path) -> UnifiedLMForConditionalGeneration:
    return AutoModelForMultimodalLM.from_pretrained(out)


def user(*parts: Any) -> dict[str, Any]:
    """A message of texts, pictures (arrays) and videos (arrays of them)."""
    content: list[dict[str, Any]] = []
    for part in parts:
        kind = "text" if isinstance(part, str) else "image" if part.ndim == 3 else "video"
        content.append({"type": kind, kind: part})
    return {"role": "user", "content": content}


def written(model: Any, processor: Any, inputs: Any, **settings: Any) -> list[str]:
    """The answers alone."""
    ids = model.generate(**inputs, **settings)
    return processor.post_process_multimodal_output(ids[:, inputs["input_ids"].shape[1] :])


def test_the_auto_classes(out: Path) -> None:
    assert type(AutoConfig.from_pretrained(out)).__name__ == "UnifiedLMConfig"
    assert type(AutoModel.from_pretrained(out)) is UnifiedLMForConditionalGeneration
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_processor.image_size == IMAGE_SIZE and processor.grid == [3, 3]


def test_answers(model: Any, processor: Any, session: Session) -> None:
    """Prompts of different lengths in one batch, with one image, with two, with an earlier turn."""
    chats = [
        [user(PICTURES[0], QUESTION)],
        [user("is", PICTURES[0], "larger than", PICTURES[1])],
        [user(QUESTION), {"role": "assistant", "content": "two"}, user("and now?")],
    ]
    codes = session.encode(PICTURES)
    write = session.builder.conversation
    prompts = [
        write([Turn(USER, IMAGE + QUESTION)], [codes[0]]),
        write([Turn(USER, f"is{IMAGE}larger than{IMAGE}")], list(codes[:2])),
        write([Turn(USER, QUESTION), Turn(ASSISTANT, "two"), Turn(USER, "and now?")]),
    ]
    end = session.builder.chat.end
    ids = [session.engine.write([p], end, 7, Sampling(temperature=0), [0])[0] for p in prompts]
    inputs = processor.apply_chat_template(chats, generation_mode="text")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [len(prompt) for prompt in prompts]
    new = model.generate(**inputs, max_new_tokens=7)[:, inputs["input_ids"].shape[1] :]
    assert [row[: len(want)].tolist() for row, want in zip(new, ids, strict=True)] == ids
    assert processor.post_process_multimodal_output(new) == [session.text(row) for row in ids]


def test_an_answer_about_a_video(model: Any, processor: Any, session: Session) -> None:
    """Frames are chosen as the session chooses them."""
    inputs = processor.apply_chat_template([user(PICTURES, "what?")], generation_mode="text")
    assert inputs["pixel_values"].shape[0] == 8
    answer = session.answer_about_video(PICTURES, "what?", 7)
    assert written(model, processor, inputs, max_new_tokens=7) == [answer]


def test_texts_with_pictures_apart(processor: Any) -> None:
    whole = processor(text=["is <image> so?", QUESTION], images=[PICTURES[0], None], generation_mode="text")
    chats = [[user("is", PICTURES[0], "so?")], [user(QUESTION)]]
    expected = processor.apply_chat_template(chats, generation_mode="text")
    assert all(torch.equal(whole[name], expected[name]) for name in expected)
    in_front = processor(text=QUESTION, images=Image.fromarray(PICTURES[0]), generation_mode="text")
    expected = processor.apply_chat_template([user(PICTURES[0], QUESTION)], generation_mode="text")
    assert all(torch.equal(in_front[name], expected[name]) for name in expected)


def test_videos_apart(processor: Any) -> None:
    """Of one text: an array, its frames as pictures, or several videos."""
    asked = processor.apply_chat_template([user(PICTURES, "what moves?")], generation_mode="text")
    frames = [Image.fromarray(picture) for picture in PICTURES]
    for videos in (PICTURES, frames, [PICTURES], [frames]):
        inputs = processor(text="what moves?", videos=videos, generation_mode="text")
        assert all(torch.equal(inputs[name], asked[name]) for name in asked)
    two = processor(text=["<video> or <video>?"], videos=[[PICTURES, frames]], generation_mode="text")
    assert torch.equal(two["pixel_values"], asked["pixel_values"].repeat(2, 1, 1, 1))


def test_drawings(model: Any, processor: Any, session: Session) -> None:
    """By the model's own settings, and by a call's; each with its seed."""
    inputs = processor(text=CAPTIONS[:2], generation_mode="image", negative_prompt=CAPTIONS[2])
    given = GenerationConfig(temperature=0.5, guidance_scale=1.0)
    for settings, sampling in (
        ({}, EVALUATED),
        ({"guidance_scale": 3.0, "top_k": 0}, replace(EVALUATED, guidance=3.0, top_k=None)),
        ({"do_sample": False}, replace(EVALUATED, temperature=0.0)),
        ({"generation_config": given}, replace(EVALUATED, temperature=0.5, guidance=1.0)),
    ):
        ids = model.generate(**inputs, generation_mode="image", seeds=[4, 9], **settings)
        assert ids.shape == (2, POSITIONS * D)
        drawn = processor.post_process_multimodal_output(
            ids, generation_mode="image", decode=model.decode_image_tokens
        )
        expected = session.draw(CAPTIONS[:2], sampling, [4, 9], negative=CAPTIONS[2])
        assert np.array_equal(np.stack([np.asarray(picture) for picture in drawn]), expected)


def test_edits_and_videos(model: Any, processor: Any, session: Session) -> None:
    inputs = processor.apply_chat_template([user(PICTURES[0], CAPTIONS[0])], generation_mode="image")
    ids = model.generate(**inputs, generation_mode="image", seeds=3)
    (edited,) = processor.post_process_multimodal_output(
        model.decode_image_tokens(ids), generation_mode="image"
    )
    assert np.array_equal(np.asarray(edited), session.edit(PICTURES[:1], CAPTIONS[:1], EVALUATED, [3])[0])
    inputs = processor(text=CAPTIONS[0], generation_mode="video")
    ids = model.generate(**inputs, generation_mode="video", seeds=3, num_frames=2)
    (film,) = processor.post_process_multimodal_output(
        ids, generation_mode="video", decode=model.decode_image_tokens
    )
    expected = session.film(CAPTIONS[:1], 2, EVALUATED, [3])[0]
    assert np.array_equal(np.stack([np.asarray(frame) for frame in film]), expected)


def test_interleaved(model: Any, processor: Any, session: Session, vocabulary: Vocabulary) -> None:
    """Text and pictures as the model decides; the head is made to open a picture at once."""
    inputs = processor(text=f"a story: {IMAGE} then", images=PICTURES[0], generation_mode="interleaved")
    prompt = session.builder.interleaved_prompt(f"a story: {IMAGE} then", list(session.encode(PICTURES[:1])))
    with torch.no_grad():
        heads = [lm.llm.get_output_embeddings().weight for lm in (model, session.model)]
        saved = heads[0].clone()
        for head in heads:
            head[vocabulary.image_start] = last_hidden(session.model, prompt)
    ids = model.generate(**inputs, generation_mode="interleaved", seeds=1, max_new_tokens=30)
    (pieces,) = processor.post_process_multimodal_output(
        ids, generation_mode="interleaved", decode=model.decode_image_tokens
    )
    expected = [part for part in session.generate([prompt], 30, EVALUATED, [1])[0] if len(part)]
    with torch.no_grad():
        for head in heads:
            head.copy_(saved)
    assert any(isinstance(piece, Image.Image) for piece in pieces)
    assert len(pieces) == len(expected)
    for piece, part in zip(pieces, expected, strict=True):
        assert piece == part if isinstance(piece, str) else np.array_equal(np.asarray(piece), part)


def test_sequences_seeds_and_caches(model: Any, processor: Any) -> None:
    inputs = processor(text=CAPTIONS[:2], generation_mode="image")
    draw = lambda **settings: model.generate(**inputs, generation_mode="image", **settings)  # noqa: E731
    four = draw(num_return_sequences=2, seeds=5)
    assert torch.equal(four, torch.cat([draw(seeds=[5, 7]), draw(seeds=[6, 8])])[[0, 2, 1, 3]])
    assert torch.equal(
        draw(seeds=5, cache_implementation="static"), draw(seeds=5, cache_implementation="dynamic")
    )
    set_seed(11)
    first, second = draw(), draw()
    set_seed(11)
    assert torch.equal(draw(), first) and not torch.equal(first, second)
    question = processor(text=QUESTION, generation_mode="text")
    sampled = model.generate(**question, do_sample=True, temperature=1.5, top_k=20, seeds=2, max_length=24)
    assert sampled.shape[1] <= 24
    assert torch.equal(sampled[:, : question["input_ids"].shape[1]], question["input_ids"])


def test_a_model_in_training_stays_in_training(model: Any, processor: Any) -> None:
    model.train()
    model.generate(**processor(text=QUESTION), max_new_tokens=1)
    assert model.llm.training and not model.vision_tower.training
    model.eval()


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids.append(value.flatten())

    def end(self) -> None:
        self.ended = True


def test_streamers(model: Any, processor: Any, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    asked = processor(text=QUESTION, images=PICTURES[0], generation_mode="text")
    model.generate(**asked, max_new_tokens=5, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    answer = session.answer(list(session.encode(PICTURES[:1])), [QUESTION], 5)[0]
    assert capsys.readouterr().out.strip() == answer
    heard = Heard()
    prompt = processor(text=CAPTIONS[0], generation_mode="image")
    ids = model.generate(**prompt, generation_mode="image", seeds=0, streamer=heard)
    told, *positions = heard.ids
    assert heard.ended and torch.equal(told, prompt["input_ids"][0])
    assert torch.equal(torch.cat(positions), ids[0]) and len(positions) == POSITIONS


@pytest.fixture(scope="module")
def pipe(out: Path) -> Any:
    return pipeline("any-to-any", model=str(out))


def test_the_pipeline_answers(pipe: Any, session: Session) -> None:
    """Though its own limit (256 tokens) is beyond the model's context."""
    answer = session.answer(list(session.encode(PICTURES[:1])), [QUESTION], 10)[0]
    chat = [user(PICTURES[0], QUESTION)]
    (said,) = pipe(text=chat, return_full_text=False, max_new_tokens=10)
    assert said["generated_text"].strip() == answer
    (said,) = pipe(text=QUESTION, images=Image.fromarray(PICTURES[0]), return_full_text=False)
    assert said["generated_text"].strip().startswith(answer)


def test_the_pipeline_draws(pipe: Any, session: Session) -> None:
    expected = session.draw(CAPTIONS[:2], EVALUATED, [1, 1])
    settings: dict[str, Any] = {"generation_mode": "image", "generate_kwargs": {"seeds": 1}}
    told = pipe(CAPTIONS[0], **settings)
    settings["processor_kwargs"] = {"generation_mode": "image"}
    told += pipe(text=[{"role": "user", "content": CAPTIONS[1]}], **settings)
    assert all(
        np.array_equal(np.asarray(one["generated_image"]), picture)
        for one, picture in zip(told, expected, strict=True)
    )


def test_what_is_supervised(processor: Any, session: Session) -> None:
    """Answers and their pictures, as in training."""
    shown = {"role": "assistant", "content": [*user("two", PICTURES[1])["content"]]}
    inputs = processor.apply_chat_template([user(QUESTION), shown], return_assistant_tokens_mask=True)
    turns = [Turn(USER, QUESTION), Turn(ASSISTANT, f"two{IMAGE}")]
    document = session.builder.conversation(turns, list(session.encode(PICTURES[1:2])))
    expected = [
        segment.supervised
        for segment in document.segments
        for _ in range(len(getattr(segment, "ids", getattr(segment, "codes", ()))))
    ]
    assert inputs["assistant_masks"][0].bool().tolist() == expected
    assert "image_prompt_ids" not in inputs


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 4}, "num_beams is 4, but there is no beam search"),
        ({"assistant_model": object()}, "generate.. has no assistant_model here; it has cache_impl.*, seeds"),
        ({"repetition_penalty": 1.2}, "has no repetition_penalty"),
        ({"use_cache": False}, "has no use_cache"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams is 2"),
        (
            {"cache_implementation": "quantized"},
            "cache_implementation is 'quantized'; it is dynamic or static",
        ),
        ({"temperature": 0.5}, "temperature is of sampling: say do_sample=True"),
        ({"guidance_scale": 3.0}, "guidance_scale is of generation modes that draw"),
        ({"generation_mode": "audio"}, "generation_mode is 'audio'; it is one of text, image, video"),
        ({"generation_mode": "video"}, "give generation_mode='video' to the processor, too"),
        ({"max_length": 3}, "max_new_tokens comes to -[0-9]+; at least 1"),
        ({"num_return_sequences": 2, "seeds": [1]}, "there are 1 seeds for 2 sequences"),
        ({"num_return_sequences": 2, "streamer": Heard()}, "a streamer is told of one sequence, but 2"),
        ({"num_frames": 0}, "num_frames is 0"),
    ],
)
def test_what_generate_refuses(
    model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(type(model.llm.get_decoder()), "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(UserError, match=sentence):
        model.generate(**processor(text=QUESTION), **settings)


def test_what_the_processor_refuses(processor: Any, model: Any) -> None:
    two = [user(PICTURES[0], PICTURES[1], QUESTION)]
    chat = [user(QUESTION), {"role": "assistant", "content": "two"}]
    for sentence, call in {
        "one image at most, not 2": lambda: processor.apply_chat_template(two, generation_mode="image"),
        "one message of the user": lambda: processor.apply_chat_template(chat, generation_mode="image"),
        "takes no image, not 1": lambda: processor(text="", images=PICTURES[0], generation_mode="video"),
        "cannot be continued": lambda: processor.apply_chat_template(chat, continue_final_message=True),
        "tokenize, return_dict and": lambda: processor.apply_chat_template(chat, tokenize=False),
        "processor_kwargs has mode; it may have generation_mode and": lambda: processor.apply_chat_template(
            chat, processor_kwargs={"mode": "image"}
        ),
        "message 1 is none": lambda: processor.apply_chat_template([{"role": "robot", "content": ""}]),
        "part of type 'audio'": lambda: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio"}]}]
        ),
        "without its 'image'": lambda: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}]
        ),
        "2 texts came with 1 entries of images": lambda: processor(text=["a", "b"], images=[PICTURES[0]]),
        "says <image> 2 times, but comes with 1": lambda: processor(text=IMAGE * 2, images=PICTURES[0]),
        "the processor needs a text": lambda: processor(images=PICTURES[0]),
        "there is no picture nowhere.png": lambda: processor(text=QUESTION, images="nowhere.png"),
        "a video has at least 1 frame": lambda: processor(text=QUESTION, videos=PICTURES[:0]),
        r"float64 \[24, 24\] is none": lambda: processor(text=QUESTION, images=np.zeros((24, 24))),
        "give decode=model": lambda: processor.post_process_multimodal_output(
            torch.zeros(1, 36, dtype=torch.long), generation_mode="image"
        ),
        "these ids are no visual ones": lambda: model.decode_image_tokens(torch.zeros(1, 36).long()),
        "are no whole pictures": lambda: model.decode_image_tokens(torch.zeros(1, 35).long()),
        "has 9 visual positions, but pixel_values holds 0": lambda: model.generate(
            processor(text=QUESTION, images=PICTURES[0])["input_ids"]
        ),
    }.items():
        with pytest.raises(UserError, match=sentence):
            call()
