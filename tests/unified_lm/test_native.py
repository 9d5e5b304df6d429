"""The unified LM as a Hugging Face model: Auto classes, processor, forward, generate, pipeline.

`Session`, which the rest of the project uses, is the reference.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_lm import CAPTIONS, IMAGE_SIZE, POSITIONS, QUESTIONS, D, K, make_model, objective, random_codes
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import vilau_unified_lm.auto  # noqa: F401  # registers
from vilau_common.data.conversation import ASSISTANT, USER, Turn
from vilau_common.errors import UserError
from vilau_common.images import to_array, to_tensor
from vilau_unified_lm.generation.request import Generated, ImagePart, TextPart, VideoPart
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.native.ids import generated_ids, parts_of_ids, prompt_ids
from vilau_unified_lm.native.model import VilaUForMultimodalLM
from vilau_unified_lm.native.processor import VilaUProcessor
from vilau_unified_lm.packing import pack
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tower import VisionTower

MAX_TOKENS = 8
FREE = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
FREELY = Sampling(temperature=1.0, top_k=None, top_p=1.0, guidance=2.0)


@pytest.fixture(scope="module")
def directory(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a training leaves in model/."""
    path = tmp_path_factory.mktemp("native") / "model"
    torch.manual_seed(1)
    make_model(vocabulary).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def session(directory: Path) -> Session:
    return Session.open(directory)


@pytest.fixture(scope="module")
def native(directory: Path) -> VilaUForMultimodalLM:
    model = AutoModelForMultimodalLM.from_pretrained(directory)
    assert isinstance(model, VilaUForMultimodalLM)
    return model


@pytest.fixture(scope="module")
def processor(directory: Path) -> VilaUProcessor:
    found = AutoProcessor.from_pretrained(directory)
    assert isinstance(found, VilaUProcessor)
    return found


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def asked(text: str, *images: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


# --- loading -----------------------------------------------------------------------------------------------------


def test_auto_classes_find_model_and_tower(
    directory: Path, native: VilaUForMultimodalLM, tmp_path: Path
) -> None:
    assert AutoConfig.from_pretrained(directory).model_type == "vilau"
    assert type(AutoModel.from_pretrained(directory)) is VilaUForMultimodalLM
    native.vision_tower.save_pretrained(tmp_path)
    tower = AutoModel.from_pretrained(tmp_path)
    assert type(tower) is VisionTower
    codes = torch.from_numpy(random_codes(0))[None]
    assert torch.equal(tower.decode(codes), native.vision_tower.decode(codes))


def test_what_is_saved_is_what_is_loaded(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, tmp_path: Path
) -> None:
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    inputs = AutoProcessor.from_pretrained(tmp_path)(CAPTIONS, generation_mode="image")
    assert torch.equal(again(**inputs).logits, native(**inputs).logits)
    assert again.generation_config.to_diff_dict() == native.generation_config.to_diff_dict()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda weights: weights.pop("projector.mlp.0.weight"), "lack projector.mlp.0.weight"),
        (
            lambda weights: weights.update({"projector.mlp.0.bias": torch.zeros(3)}),
            "have another shape of projector.mlp.0.bias",
        ),
        (lambda weights: weights.update(other=torch.zeros(1)), "does not know: other"),
    ],
)
def test_weights_that_do_not_fit_are_refused(directory: Path, tmp_path: Path, change: Any, told: str) -> None:
    path = shutil.copytree(directory, tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=told):
        AutoModelForMultimodalLM.from_pretrained(path)


# --- processor ---------------------------------------------------------------------------------------------------


def test_prompts_are_the_training_s(
    processor: VilaUProcessor, session: Session, pictures: np.ndarray, vocabulary: Vocabulary
) -> None:
    builder = session.builder
    one, two, three = (list(session.encode(pictures))[i] for i in range(3))
    conversation = [
        *asked("which is red?", pictures[0], Image.fromarray(pictures[1])),
        {"role": "assistant", "content": "the first"},
        {"role": "user", "content": "and now?"},
    ]
    turns = [Turn(USER, "<image><image>which is red?"), Turn(ASSISTANT, "the first"), Turn(USER, "and now?")]
    film = [
        {
            "role": "user",
            "content": [{"type": "video", "video": list(pictures)}, {"type": "text", "text": "what?"}],
        }
    ]
    seen = [one, list(session.encode(pictures))[2], list(session.encode(pictures))[3]]
    cases = [
        (asked("what?", pictures[0]), "text", builder.question_prompt(one, "what?"), pictures[:1]),
        (conversation, "interleaved", builder.conversation(turns, [one, two]), pictures[:2]),
        (asked(CAPTIONS[0]), "image", builder.drawing_prompt(CAPTIONS[0]), None),
        (asked(CAPTIONS[0]), "video", builder.filming_prompt(CAPTIONS[0]), None),
        (asked("more", pictures[2]), "image", builder.editing_prompt(three, "more"), pictures[2:3]),
        (
            film,
            "text",
            builder.conversation([Turn(USER, "<video>what?")], videos=[seen]),
            pictures[[0, 2, 3]],
        ),
    ]
    for messages, mode, document, shown in cases:
        options = {"generation_mode": mode, "num_frames": 3}
        batch = processor.apply_chat_template(messages, return_dict=True, **options)
        assert batch["input_ids"].tolist() == [prompt_ids(document, vocabulary)]
        assert batch["attention_mask"].all()
        if shown is None:
            assert "pixel_values" not in batch
        else:
            assert np.array_equal(to_array(batch["pixel_values"]), shown)


def test_prompts_as_they_stand(
    processor: VilaUProcessor, vocabulary: Vocabulary, pictures: np.ndarray
) -> None:
    batch = processor(["what is <image> here?\n", CAPTIONS[3]], images=[pictures[0], []])
    first, second = batch["input_ids"].tolist()
    ids = processor.tokenizer
    place = [vocabulary.image_start, *[vocabulary.text_size] * POSITIONS, vocabulary.image_end]
    before, after = (ids(text, add_special_tokens=False)["input_ids"] for text in ("what is", "here?\n"))
    expected = [vocabulary.begin, *before, *place, *after]
    alone = [vocabulary.begin, *ids(CAPTIONS[3], add_special_tokens=False)["input_ids"]]
    length = max(len(expected), len(alone))
    for row, mask, wanted in zip(
        (first, second), batch["attention_mask"].tolist(), (expected, alone), strict=True
    ):
        assert row == [vocabulary.pad] * (length - len(wanted)) + wanted
        assert mask == [0] * (length - len(wanted)) + [1] * len(wanted)
    led = processor("what?", images=pictures[0])["input_ids"]
    assert torch.equal(led, processor("<image>what?", images=[pictures[0]])["input_ids"])


def test_a_prompt_as_a_string(processor: VilaUProcessor, pictures: np.ndarray) -> None:
    assert processor.apply_chat_template(asked("what?")) == "what?\n"
    shown = processor.apply_chat_template([asked("what?", pictures[0])])
    assert shown == ["<image_start><image><image_end> what?\n"]


def test_a_message_goes_on(processor: VilaUProcessor, session: Session, vocabulary: Vocabulary) -> None:
    messages = [*asked("what?"), {"role": "assistant", "content": "a red"}]
    batch = processor.apply_chat_template(messages, continue_final_message=True, return_dict=True)
    whole = prompt_ids(
        session.builder.conversation([Turn(USER, "what?"), Turn(ASSISTANT, "a red")]), vocabulary
    )
    assert batch["input_ids"].tolist() == [whole[:-1]]
    closed = processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=True)
    assert closed.tolist() == [whole]


def test_a_video_file_and_few_frames(processor: VilaUProcessor, pictures: np.ndarray, tmp_path: Path) -> None:
    for videos in (pictures, list(pictures), [list(pictures)], [pictures], [[list(pictures)]]):
        batch = processor("<video>what?", videos=videos, num_frames=9)
        assert np.array_equal(to_array(batch["pixel_values"]), pictures)  # no frame twice
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = IMAGE_SIZE
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    two = processor(["<video>what?", "<video>who?"], videos=[str(path), pictures], num_frames=2)
    assert len(two["pixel_values"]) == 4
    assert np.array_equal(to_array(two["pixel_values"][2:]), pictures[[0, -1]])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda p: p("a", generation_mode="sound"), "generation_mode is 'sound'; the choices are text"),
        (lambda p: p("<image>a"), "0 images, but 1 <image>"),
        (lambda p: p(["a", "b"], images=[1]), "2 prompts came with 1 images"),
        (lambda p: p("a", images=[np.zeros((4, 4), np.uint8)]), r"image of shape \[4, 4\] and type uint8"),
        (lambda p: p("a", images=["nowhere.png"]), "there is no picture nowhere.png"),
        (lambda p: p("a", videos=["nowhere.mp4"]), "nowhere.mp4"),
        (lambda p: p("a", audio=[1]), "audio is given"),
        (lambda p: p("a", num_frames=0), "num_frames is 0"),
        (lambda p: p("a", return_tensors="np"), "return_tensors is 'np'"),
        (lambda p: p.apply_chat_template([]), "conversation is empty"),
        (
            lambda p: p.apply_chat_template([{"role": "tool", "content": "a"}]),
            "message 1 is of the role 'tool'",
        ),
        (lambda p: p.apply_chat_template([{"role": "user", "content": 3}]), "content of message 1"),
        (lambda p: p.apply_chat_template([{"role": "user", "content": "<image>"}]), "stand for pictures"),
        (
            lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}]),
            "a part of type 'audio'",
        ),
        (
            lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}]),
            "without its image",
        ),
        (lambda p: p.apply_chat_template(asked("a"), "{{ x }}"), "chat_template is given"),
        (
            lambda p: p.apply_chat_template(asked("a"), continue_final_message=True),
            "the last one is the user's",
        ),
        (
            lambda p: p.apply_chat_template([*asked("a"), {"role": "assistant", "content": "b"}]),
            "set continue_final_message=True",
        ),
        (
            lambda p: p.apply_chat_template([*asked("a")] * 3, tokenize=True, generation_mode="image"),
            "takes one message",
        ),
        (
            lambda p: p.apply_chat_template(asked("a"), processor_kwargs={"fps": 2}),
            "processor_kwargs has fps",
        ),
    ],
)
def test_what_the_processor_refuses(processor: VilaUProcessor, call: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        call(processor)


# --- forward -----------------------------------------------------------------------------------------------------


def test_logits_and_loss_are_the_training_s(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, session: Session, pictures: np.ndarray
) -> None:
    builder, (code, other) = session.builder, list(session.encode(pictures[:2]))
    documents = [builder.image_to_text(code, CAPTIONS[0]), builder.text_to_image(CAPTIONS[1], other)]
    length = max(len(document) for document in documents)
    batch = pack([[document] for document in documents], length, D)
    rows = [prompt_ids(document, native.vocabulary) for document in documents]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    supervised = torch.nn.functional.pad(
        ((batch.text_targets != -100) | (batch.visual_targets != -100))[:, :-1], (1, 0)
    )
    labels = ids.masked_fill(~supervised, -100)
    output = native(ids, mask, to_tensor(pictures[:2]), labels)
    torch.testing.assert_close(output.loss, objective(session.model, batch).total)
    hidden, _ = session.model.hidden_states(batch)
    expected = session.model.text_logits(hidden)
    torch.testing.assert_close(output.logits[mask.bool()], expected[mask.bool()])


def test_forward_compiles_without_a_graph_break(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, pictures: np.ndarray
) -> None:
    inputs = processor(["<image>what?", CAPTIONS[3]], images=[pictures[0], []])
    compiled = torch.compile(native, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, native(**inputs).logits)


def test_lora_attaches_by_name(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, directory: Path
) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(directory)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained and all(
        "lora_" in name and "llm" in name for name in trained if "vision_tower" not in name
    )
    inputs = processor(CAPTIONS[:2])
    torch.testing.assert_close(model(**inputs).logits, native(**inputs).logits)  # B is zero
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


# --- generate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_answers_are_the_session_s(
    native: VilaUForMultimodalLM,
    processor: VilaUProcessor,
    session: Session,
    pictures: np.ndarray,
    cache: str,
) -> None:
    questions = [turn["question"] for turn in QUESTIONS[:2]]
    messages = [asked(question, picture) for question, picture in zip(questions, pictures, strict=False)]
    inputs = processor.apply_chat_template(messages, return_dict=True)
    ids = native.generate(**inputs, max_new_tokens=MAX_TOKENS, cache_implementation=cache)
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    answers = processor.post_process_multimodal_output(ids[:, inputs["input_ids"].shape[1] :])
    expected = session.answer(list(session.encode(pictures[:2])), questions, MAX_TOKENS)
    assert [answer.strip() for answer in answers] == expected


def test_drawings_are_the_session_s(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, session: Session
) -> None:
    inputs = processor(CAPTIONS[:2], generation_mode="image")
    ids = native.generate(**inputs, generation_mode="image", guidance_scale=2.0, seed=[3, 5], **FREE)
    drawn = processor.post_process_multimodal_output(native.decode_image_tokens(ids), generation_mode="image")
    expected = session.draw(CAPTIONS[:2], FREELY, [3, 5])
    assert np.array_equal(np.stack([np.asarray(picture) for picture in drawn]), expected)
    # A prompt that does not say where the drawing begins, as a pipeline gives it.
    bare = processor(CAPTIONS[:2])
    again = native.generate(**bare, generation_mode="image", guidance_scale=2.0, seed=[3, 5], **FREE)
    assert torch.equal(ids, again)


def test_negative_prompts_and_edits(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, session: Session, pictures: np.ndarray
) -> None:
    inputs, away = (processor(caption, generation_mode="image") for caption in CAPTIONS[:2])
    ids = native.generate(
        **inputs,
        generation_mode="image",
        guidance_scale=2.0,
        seed=3,
        negative_prompt_ids=away["input_ids"],
        negative_prompt_attention_mask=away["attention_mask"],
        **FREE,
    )
    expected = session.draw(CAPTIONS[:1], FREELY, [3], negative=CAPTIONS[1])
    assert np.array_equal(to_array(native.decode_image_tokens(ids)), expected)
    edit = processor.apply_chat_template(
        asked("more", pictures[0]), return_dict=True, generation_mode="image"
    )
    ids = native.generate(**edit, generation_mode="image", guidance_scale=2.0, seed=3, **FREE)
    expected = session.edit(pictures[:1], ["more"], FREELY, [3])
    assert np.array_equal(to_array(native.decode_image_tokens(ids)), expected)


def test_videos_are_the_session_s(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, session: Session
) -> None:
    inputs = processor(CAPTIONS[0], generation_mode="video")
    ids = native.generate(**inputs, generation_mode="video", guidance_scale=2.0, seed=3, frames=2, **FREE)
    (film,) = processor.post_process_multimodal_output(
        native.decode_video_tokens(ids), generation_mode="video"
    )
    expected = session.film(CAPTIONS[:1], 2, FREELY, [3])[0]
    assert np.array_equal(np.stack([np.asarray(frame) for frame in film]), expected)


def test_interleaved_is_the_session_s(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, session: Session, vocabulary: Vocabulary
) -> None:
    inputs = processor(CAPTIONS[:3])
    room, seeds = 30, [1, 2, 3]
    # The random model hardly ever opens a picture by itself.
    with torch.no_grad():
        native.llm.get_output_embeddings().weight[vocabulary.image_start] *= 4
        session.model.llm.get_output_embeddings().weight[vocabulary.image_start] *= 4
    try:
        options = {"guidance_scale": 2.0, "max_new_tokens": room, **FREE}
        ids = native.generate(**inputs, generation_mode="interleaved", seed=seeds, **options)
        parts = native.decode_interleaved_tokens(ids)
        written = processor.post_process_multimodal_output(parts, generation_mode="interleaved")
        prompts = [session.builder.literal(caption) for caption in CAPTIONS[:3]]
        text = Sampling(temperature=1.0, top_k=None, top_p=1.0, guidance=1.0)
        expected = session.generate(prompts, room, FREELY, seeds, text=text)
    finally:
        with torch.no_grad():
            native.llm.get_output_embeddings().weight[vocabulary.image_start] /= 4
            session.model.llm.get_output_embeddings().weight[vocabulary.image_start] /= 4
    assert any(isinstance(part, Image.Image) for parts in written for part in parts)
    for ours, theirs in zip(written, expected, strict=True):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one == other if isinstance(one, str) else np.array_equal(np.asarray(one), other)


def test_several_sequences_and_seeds(native: VilaUForMultimodalLM, processor: VilaUProcessor) -> None:
    inputs = processor(CAPTIONS[:2], generation_mode="image")
    options = {"generation_mode": "image", "guidance_scale": 2.0, **FREE}
    ids = native.generate(**inputs, num_return_sequences=2, seed=[1, 2, 3, 4], **options)
    assert ids.shape == (4, POSITIONS * D)
    one = processor(CAPTIONS[1], generation_mode="image")
    assert torch.equal(ids[2:], native.generate(**one, num_return_sequences=2, seed=3, **options))
    torch.manual_seed(7)
    first, other = (native.generate(**inputs, **options) for _ in range(2))
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    assert torch.equal(first, native.generate(**inputs, **options))


def test_the_model_s_own_settings_are_honoured(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, directory: Path
) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(directory)
    inputs = processor(CAPTIONS[0], generation_mode="image")
    greedy = native.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=1.5)
    model.generation_config.do_sample = False
    model.generation_config.guidance_scale = 1.5
    assert torch.equal(model.generate(**inputs, generation_mode="image"), greedy)
    text = processor("what?\n")
    model.generation_config.max_new_tokens = 3
    assert model.generate(**text).shape[1] == text["input_ids"].shape[1] + 3
    assert model.generate(**text, max_new_tokens=1).shape[1] == text["input_ids"].shape[1] + 1


def test_training_mode_stays(native: VilaUForMultimodalLM, processor: VilaUProcessor) -> None:
    native.train()
    native.generate(**processor("what?\n"), max_new_tokens=1)
    assert native.training and not native.vision_tower.training
    native.eval()


class Told(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended = True


def test_a_streamer_sees_what_comes(native: VilaUForMultimodalLM, processor: VilaUProcessor) -> None:
    inputs = processor("what?\n")
    told = Told()
    ids = native.generate(**inputs, max_new_tokens=4, streamer=told)
    seen = torch.cat([value.flatten() for value in told.values])
    assert told.ended and torch.equal(seen, ids[0, : len(seen)]) and len(seen) >= ids.shape[1] - 1
    told = Told()
    ids = native.generate(**inputs, generation_mode="image", seed=1, streamer=told)
    assert torch.equal(torch.cat(told.values[1:]), ids[0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 4}, "num_beams=4 asks for what is not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
        ({"use_cache": False}, "use_cache=False"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"cache_implementation": "offloaded"}, "cache_implementation is 'offloaded'"),
        ({"colour": 3}, "generate has no option colour"),
        ({"generation_mode": "sound"}, "generation_mode is 'sound'"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"seed": [1, 2]}, "1 samples came with 2 seeds"),
        ({"max_new_tokens": 0}, "0 new tokens are asked for"),
        ({"max_length": 2}, "new tokens are asked for after a prompt"),
        ({"generation_mode": "image", "guidance_scale": -1.0}, "guidance is -1.0"),
        ({"generation_mode": "video", "frames": 0}, "a video of 0 frames"),
        (
            {"negative_prompt_ids": torch.zeros(3, 1, dtype=torch.int64), "generation_mode": "image"},
            "3 negative",
        ),
        ({"pixel_values": torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)}, "0 visual positions, but the pictures"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, r"pixel_values has the shape \[1, 3, 8, 8\]"),
        ({"num_return_sequences": 2, "streamer": Told()}, "a streamer follows one sample"),
    ],
)
def test_what_generate_refuses(
    native: VilaUForMultimodalLM, processor: VilaUProcessor, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        native.generate(**{**processor("what?\n"), **options})


def test_ids_that_are_no_prompt_are_refused(native: VilaUForMultimodalLM, vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match=f"holds the id {vocabulary.text_size + 3}"):
        native.generate(torch.tensor([[vocabulary.begin, vocabulary.text_size + 3]]))
    with pytest.raises(UserError, match="part of one is missing"):
        native.decode_image_tokens(torch.full((1, 5), vocabulary.text_size))
    with pytest.raises(UserError, match="not the visual tokens of their depths"):
        native.decode_image_tokens(torch.full((1, POSITIONS * D), vocabulary.text_size + D * K - 1))


def test_generated_ids_come_back(native: VilaUForMultimodalLM, vocabulary: Vocabulary) -> None:
    image = torch.from_numpy(random_codes(1))
    video = torch.stack([torch.from_numpy(random_codes(seed)) for seed in (2, 3)])
    generated = Generated(
        [TextPart([5, 6]), ImagePart(image), ImagePart(image), VideoPart(video), TextPart([7])]
    )
    ids = torch.nn.functional.pad(generated_ids(generated, vocabulary), (0, 3), value=vocabulary.pad)
    parts = parts_of_ids(ids, vocabulary, native.image_tokenizer.grid)
    assert [part.tolist() for part in parts] == [
        [5, 6],
        image.tolist(),
        image.tolist(),
        video.tolist(),
        [7],
    ]


# --- pipeline ----------------------------------------------------------------------------------------------------


def test_the_pipeline_answers_and_draws(
    directory: Path,
    native: VilaUForMultimodalLM,
    session: Session,
    pictures: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = pipeline("any-to-any", model=str(directory))
    assert "is not supported" not in caplog.text
    question = QUESTIONS[0]["question"]
    (answer,) = pipe(
        text=asked(question, Image.fromarray(pictures[0])), max_new_tokens=MAX_TOKENS, return_full_text=False
    )
    expected = session.answer(list(session.encode(pictures[:1])), [question], MAX_TOKENS)
    assert answer["generated_text"].strip() == expected[0]
    torch.manual_seed(0)
    (drawn,) = pipe(text=CAPTIONS[0], generation_mode="image")
    torch.manual_seed(0)
    ids = native.generate(**AutoProcessor.from_pretrained(directory)(CAPTIONS[0]), generation_mode="image")
    assert np.array_equal(np.asarray(drawn["generated_image"]), to_array(native.decode_image_tokens(ids))[0])
