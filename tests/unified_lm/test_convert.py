"""Official checkpoints converted, back again byte for byte, and used as a run is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_variants as variants
import pytest
import torch
from official_variants import SEPARATE, SHARED, as_bytes, change_json, change_tensors, copy_of, tensors_of
from PIL import Image
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from vilau_common.data.conversation import ASSISTANT, IMAGE, USER, VIDEO, Turn
from vilau_common.errors import UserError
from vilau_unified_lm.cli import main
from vilau_unified_lm.convert.layout import open_official
from vilau_unified_lm.convert.read import UNQUANTIZED, convert_from_official, inspect, load_official
from vilau_unified_lm.convert.tokenizer import official_tokenizer
from vilau_unified_lm.convert.write import convert_to_official
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.model import UnifiedLM, load_unified_lm
from vilau_unified_lm.session import Session
from vilau_unified_lm.vicuna import VicunaBuilder
from vilau_unified_lm.vocabulary import RELEASED_SPECIAL_TOKENS, Vocabulary

SAME = {"plain": lambda directory: directory, "bfloat16": variants.in_bfloat16, "shards": variants.in_shards}


@pytest.mark.parametrize("variant", SAME)
@pytest.mark.parametrize("case", [SHARED, SEPARATE], ids=lambda case: case.name)
def test_round_trip_keeps_every_byte(case: Path, variant: str, tmp_path: Path) -> None:
    """Keys, dtypes, shapes and bytes of every tensor, and every file beside them."""
    official = SAME[variant](copy_of(case, tmp_path / "official"))
    convert_from_official(official, tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "back")
    assert as_bytes(tensors_of(tmp_path / "back")) == as_bytes(tensors_of(official))

    def files(directory: Path) -> dict[str, bytes]:
        paths = [path for path in directory.rglob("*") if path.is_file()]
        return {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in paths
            if path.suffix != ".safetensors" and not path.name.endswith("index.json")
        }

    assert files(tmp_path / "back") == files(official)


def test_round_trip_of_bins(tmp_path: Path) -> None:
    """What was a pickle becomes safetensors; a shared codebook is written under all the names it had."""
    official = variants.in_bins(copy_of(SHARED, tmp_path / "official"))
    convert_from_official(official, tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "back")
    back, first = tensors_of(tmp_path / "back"), tensors_of(SHARED)
    names = [name for name in back if name.endswith("codebooks.3.weight")]
    assert len(back) == len(first) + 9 and len(names) == 1
    assert as_bytes({name: back[name] for name in first}) == as_bytes(first)
    assert torch.equal(back[names[0]], first[names[0].replace(".3.", ".0.")])


def test_converted_and_official_are_one_model(tmp_path: Path) -> None:
    official = variants.in_bfloat16(copy_of(SEPARATE, tmp_path / "official"))
    convert_from_official(official, tmp_path / "ours")
    direct, converted = UnifiedLM.from_official(official), load_unified_lm(tmp_path / "ours", "auto")
    assert {**direct.config.to_diff_dict(), "architectures": ["UnifiedLM"]} == converted.config.to_diff_dict()
    left, right = direct.state_dict(), converted.state_dict()
    assert left.keys() == right.keys()
    assert all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )
    assert direct.dtype == torch.bfloat16
    assert direct.vision_tower.quantizer.codebooks.dtype == torch.float32
    assert not direct.training and not any(p.requires_grad for p in direct.vision_tower.parameters())
    text = "the sun and the moon <im_start>"
    _, tokenizer = load_official(official)
    assert Session.open(tmp_path / "ours").text_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_tuned_model_is_written_like_its_origin(tmp_path: Path) -> None:
    """Trained further, saved as any model, and written with the names and the text model of its origin."""
    model, tokenizer = load_official(SEPARATE)
    with torch.no_grad():
        for parameter in (*model.llm.parameters(), *model.depth.parameters(), *model.projector.parameters()):
            parameter.add_(0.5)
    model.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="--like"):
        convert_to_official(tmp_path / "run", tmp_path / "back")
    convert_to_official(tmp_path / "run", tmp_path / "back", like=SEPARATE)
    before, after = tensors_of(SEPARATE), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        tuned = not name.startswith("vision_tower/rqvaesiglip")
        assert torch.equal(after[name], tensor + 0.5 if tuned else tensor), name
    again = UnifiedLM.from_official(tmp_path / "back").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_template_of_another_architecture(tmp_path: Path) -> None:
    convert_from_official(SHARED, tmp_path / "ours")
    with pytest.raises(UserError, match="architecture"):
        convert_to_official(tmp_path / "ours", tmp_path / "back", like=SEPARATE)
    assert not (tmp_path / "back").exists()


def test_model_that_the_official_code_has_not(model: UnifiedLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no transformer decoder.*no codes narrower than the encoder"):
        convert_to_official(tmp_path, tmp_path / "out", like=SHARED)


# --- other layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp3x_gelu", 3), ("identity", 0)])
def test_projector_kinds(kind: str, layers: int, tmp_path: Path) -> None:
    official = copy_of(SHARED, tmp_path / "official")  # features and hidden states are both 64 wide
    change_json(official / "mm_projector" / "config.json", mm_projector_type=kind)
    prefixes = ["layers"] if layers == 1 else [f"layers.{2 * layer}" for layer in range(layers)]
    weights = {f"{prefix}.weight": torch.randn(64, 64) for prefix in prefixes}
    biases = {f"{prefix}.bias": torch.randn(64) for prefix in prefixes}
    change_tensors(official / "mm_projector", lambda _: {**weights, **biases})
    projector = UnifiedLM.from_official(official).projector
    x = expected = torch.randn(5, 64)
    for number, prefix in enumerate(prefixes):
        expected = expected if number == 0 else torch.nn.functional.gelu(expected)
        expected = expected @ weights[f"{prefix}.weight"].T + biases[f"{prefix}.bias"]
    torch.testing.assert_close(projector(x, torch.zeros(5, dtype=torch.long)), expected, rtol=1e-4, atol=1e-4)
    convert_from_official(official, tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "back")
    assert as_bytes(tensors_of(tmp_path / "back")) == as_bytes(tensors_of(official))


def test_tied_head_and_stretched_positions(tmp_path: Path) -> None:
    """A head that is tied to the embedding is not stored; RoPE stretched for a longer context, as tuning leaves it."""
    official = copy_of(SHARED, tmp_path / "official")
    change_json(
        official / "llm" / "config.json",
        tie_word_embeddings=True,
        rope_scaling={"type": "linear", "factor": 2.0},
        max_position_embeddings=1024,
    )
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change_tensors(
        official / "llm",
        lambda tensors: {**{k: v for k, v in tensors.items() if k != "lm_head.weight"}, **inverse},
    )
    model = UnifiedLM.from_official(official)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    plain = UnifiedLM.from_official(SHARED).llm.model.rotary_emb.inv_freq
    torch.testing.assert_close(model.llm.model.rotary_emb.inv_freq, plain / 2)
    convert_from_official(official, tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "back")
    assert as_bytes(tensors_of(tmp_path / "back")) == as_bytes(tensors_of(official))


def test_interpolated_latent_grid(tmp_path: Path) -> None:
    """A latent grid finer than that of the codes: pictures grow with it."""
    official = copy_of(SHARED, tmp_path / "official")
    change_json(official / "vision_tower" / "config.json", rqvaesiglip__decoder_latent_shape=[6, 6])
    model = UnifiedLM.from_official(official)
    assert model.vision_tower.decode(torch.zeros(1, 4, 4, 4, dtype=torch.long)).shape == (1, 3, 48, 48)


# --- text and prompts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released() -> tuple[PreTrainedTokenizerFast, VicunaBuilder]:
    tokenizer = inspect(SHARED).tokenizer
    return tokenizer, VicunaBuilder(tokenizer, Vocabulary.from_tokenizer(tokenizer, 128, 4))


def test_text_is_cut_as_sentencepiece_cuts_it(
    released: tuple[PreTrainedTokenizerFast, VicunaBuilder],
) -> None:
    """This model's normalisation (NMT's NFKC) turns line ends into spaces, joins spaces and drops the last ones."""
    tokenizer, builder = released
    assert builder.ids("\nthe  sun ") == builder.ids("the sun")
    assert builder.ids("ｔｈｅ sun") == builder.ids("the sun")  # full width
    assert builder.ids("\n") == ()
    assert tokenizer.decode(builder.ids("the sun, the moon")) == "the sun, the moon"
    start = builder.vocabulary.image_start

    def ids(text: str) -> tuple[int, ...]:  # the builder's refuse the marks of pictures
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert ids("the<im_start>sun") == (*ids("the"), start, *ids("<im_start>sun")[1:])
    # Behind a special token, a space stands only where there is one.
    assert ids("<im_start> sun")[1:] == ids("sun") != ids("<im_start>sun")[1:]


def test_model_without_normalisation(tmp_path: Path) -> None:
    """As LLaMA's own: line ends and every space are kept, and bytes stand for what has no piece."""
    model = import_protobuf().ModelProto()
    model.trainer_spec.model_type = 2
    model.normalizer_spec.remove_extra_whitespaces = False
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(piece, 1) for piece in ("▁a", "▁ab", "ab", "a", "b", "▁", ":")]
    for score, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-score, type=kind)
    official = copy_of(SHARED, tmp_path / "official")
    (official / "llm" / "tokenizer.model").write_bytes(model.SerializeToString())
    added = {token: len(pieces) + n for n, token in enumerate(RELEASED_SPECIAL_TOKENS)}
    (official / "llm" / "added_tokens.json").write_text(json.dumps(added))
    change_json(official / "llm" / "tokenizer_config.json", added_tokens_decoder=None)
    change_json(official / "llm" / "config.json", vocab_size=len(pieces) + 4)
    tokenizer = official_tokenizer(open_official(official))

    def cut(text: str) -> str:
        return " ".join(
            tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    assert cut("ab a") == "▁ab ▁a"
    assert cut("\nab") == "▁ <0x0A> ab"
    assert cut("a  b: ") == "▁a ▁ ▁ b : ▁"
    assert cut("a <im_start>ab") == "▁a ▁ <im_start> ab"
    assert cut("<im_start>\nab") == "<im_start> <0x0A> ab"
    assert cut("é") == "▁ <0xC3> <0xA9>"


def test_prompts_of_videos_and_conversations(
    released: tuple[PreTrainedTokenizerFast, VicunaBuilder],
) -> None:
    tokenizer, builder = released
    codes = np.zeros((4, 4, 4), np.int64)
    film = builder.conversation([Turn(USER, f"{VIDEO}what is this?")], videos=[[codes] * 8])
    shown = builder.question_prompt(codes, "what is this?")
    assert len(film) == len(shown) + 7 * 16
    asked = builder.conversation([Turn(USER, f"{IMAGE}what is this?")], [codes])
    assert [part.ids for part in asked.segments if hasattr(part, "ids")] == [
        part.ids for part in shown.segments if hasattr(part, "ids")
    ]
    turns = [Turn(USER, f"{IMAGE}\nwhat?"), Turn(ASSISTANT, "a tree"), Turn(USER, f"and {IMAGE}?")]
    chat = builder.conversation(turns, [codes, codes])
    texts = [tokenizer.decode(segment.ids) for segment in chat.segments if hasattr(segment, "ids")]
    assert texts[1:] == ["what? ASSISTANT:", "a tree</s>", "USER: and", "? ASSISTANT:"]
    said = builder.questions(codes, [("what?", "a tree"), ("how many?", "one")], independent=False)
    texts = [tokenizer.decode(segment.ids) for segment in said.segments if hasattr(segment, "ids")]
    assert texts[0].endswith("USER:")
    assert texts[1:] == ["what? ASSISTANT:", "a tree</s>", "USER: how many? ASSISTANT:", "one</s>"]
    supervised = [segment.supervised for segment in said.segments]
    assert supervised == [False, False, False, True, False, True]
    alone = builder.questions(codes, [("how many?", "one")], independent=True)
    together = builder.questions(codes, [("what?", "a tree"), ("how many?", "one")], independent=True)
    assert [s.ids for s in together.segments[-2:]] == [s.ids for s in alone.segments[-2:]]
    drawn = builder.text_to_image("a tree", codes)
    assert drawn.segments[0].ids == builder.drawing_prompt(" a tree ").segments[0].ids
    assert drawn.segments[-1].ids == (builder.vocabulary.image_end, builder.vocabulary.end)


def test_used_as_a_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ask, draw and reconstruct on an official directory and on the converted one: the same answers and pixels."""
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(picture)
    official = copy_of(SHARED, tmp_path / "official")
    change_json(official / "llm" / "config.json", max_position_embeddings=150)  # its answers find no end
    assert main(["convert", "from-official", str(official), str(tmp_path / "ours")]) == 0
    told = []
    for run in (str(official), str(tmp_path / "ours")):
        capsys.readouterr()
        assert main(["ask", run, str(picture), "describe this image in detail"]) == 0
        assert (
            main(["draw", run, "a red circle", "-o", str(tmp_path / "drawn.png"), "--dtype", "float32"]) == 0
        )
        assert main(["reconstruct", run, str(picture), "-o", str(tmp_path / "back.png")]) == 0
        pixels = [(tmp_path / name).read_bytes() for name in ("drawn.png", "back.png")]
        told.append((capsys.readouterr().out, pixels))
    assert told[0] == told[1]
    assert main(["convert", "to-official", str(tmp_path / "ours"), str(tmp_path / "again")]) == 0
    assert as_bytes(tensors_of(tmp_path / "again")) == as_bytes(tensors_of(SHARED))


def test_film_and_questions_about_one() -> None:
    session = Session.open(SHARED)
    film = session.film(["the sun", "the moon"], 2, GREEDY, [0, 1])
    assert film.shape == (2, 2, 32, 32, 3) and film.dtype == np.uint8
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    answer = session.answer_about_video(frames, "what is this?", 5)
    chosen = frames[[0, 3, 5, 8]]  # 4 frames, as the checkpoint says, spread evenly
    assert answer == session.answer_about_video(chosen, "what is this?", 5)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(device_map: str | dict[str, str]) -> None:
    model = UnifiedLM.from_official(SHARED, device_map=device_map)
    plain = UnifiedLM.from_official(SHARED)
    codes = torch.randint(128, (1, 4, 4, 4))
    assert torch.equal(model.vision_tower.decode(codes), plain.vision_tower.decode(codes))


def test_weights_on_disk(tmp_path: Path) -> None:
    """Some of the LM's layers stay on disk until they are called."""
    device_map = dict.fromkeys(["vision_tower", "projector", "depth", "llm.model.embed_tokens"], "cpu")
    device_map |= dict.fromkeys(["llm.model.norm", "llm.model.rotary_emb", "llm.lm_head"], "cpu")
    device_map |= {"llm.model.layers.0": "cpu", "llm.model.layers.1": "disk", "llm.model.layers.2": "disk"}
    model, tokenizer = load_official(SHARED, device_map=device_map, offload_folder=str(tmp_path))
    assert model.llm.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    drawn = Session(model, tokenizer).draw(["the sun"], GREEDY, [0])
    assert np.array_equal(drawn, Session.open(SHARED).draw(["the sun"], GREEDY, [0]))


def test_quantization_leaves_the_codes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed on to transformers; the user's own settings stay as they are."""
    seen: dict[str, object] = {}

    def from_pretrained(_: object, **settings: object) -> None:
        seen.update(settings)
        raise NotImplementedError

    monkeypatch.setattr(UnifiedLM, "from_pretrained", from_pretrained)
    for given, expected in ((None, list(UNQUANTIZED)), (["llm"], ["llm"])):
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=given)
        with pytest.raises(NotImplementedError):
            UnifiedLM.from_official(
                SHARED, quantization_config=quantization, device_map="auto", dtype="bfloat16"
            )
        assert seen["quantization_config"].llm_int8_skip_modules == expected
        assert quantization.llm_int8_skip_modules == given
        assert (seen["device_map"], seen["dtype"]) == ("auto", "bfloat16")


# --- bad input ---------------------------------------------------------------------------------------------------


def cut(directory: Path) -> None:
    file = directory / "llm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop(part: str, name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        change_tensors(directory / part, lambda tensors: {k: v for k, v in tensors.items() if k != name})

    return change


def put(part: str, name: str, tensor: Tensor) -> Callable[[Path], None]:
    return lambda directory: change_tensors(directory / part, lambda tensors: {**tensors, name: tensor})


def change(file: str, **changes: object) -> Callable[[Path], None]:
    return lambda directory: change_json(directory / file, **changes)


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no part": (lambda d: shutil.rmtree(d / "mm_projector"), ["no mm_projector/ in"]),
    "no root configuration": (lambda d: (d / "config.json").unlink(), ["there is no", "config.json"]),
    "no part's configuration": (
        lambda d: (d / "llm" / "config.json").unlink(),
        ["there is no", "llm/config.json"],
    ),
    "broken configuration": (
        lambda d: (d / "llm" / "config.json").write_text("{"),
        ["llm/config.json cannot be read as JSON"],
    ),
    "no weights": (lambda d: (d / "llm" / "model.safetensors").unlink(), ["no weights in", "llm"]),
    "cut off": (cut, ["llm/model.safetensors is cut off"]),
    "another model": (change("config.json", model_type="llava"), ["config.json: model_type is 'llava'"]),
    "another tower": (
        change("vision_tower/config.json", model_type="radio"),
        ["vision_tower/config.json: model_type is 'radio'"],
    ),
    "another LM": (change("llm/config.json", model_type="qwen2"), ["llm/config.json: model_type is 'qwen2'"]),
    "another projector": (
        change("mm_projector/config.json", mm_projector_type="mlp_downsample"),
        ["mm_projector/config.json: mm_projector_type is 'mlp_downsample'"],
    ),
    "no tower": (
        change("vision_tower/config.json", rqvaesiglip=None),
        ["vision_tower/config.json has no rqvaesiglip"],
    ),
    "unknown SigLIP": (
        change("vision_tower/config.json", rqvaesiglip__pretrained_model="google/siglip-base"),
        ["vision_tower/config.json: rqvaesiglip.pretrained_model is 'google/siglip-base'"],
    ),
    "other codes": (
        change("vision_tower/config.json", rqtransformer__vocab_size=64),
        ["vision_tower/config.json: rqtransformer.vocab_size is 64", "128"],
    ),
    "no heads": (
        change("vision_tower/config.json", rqtransformer__head={"n_layer": 3}),
        ["vision_tower/config.json: rqtransformer has no 'block'"],
    ),
    "other pictures": (
        change("config.json", image_aspect_ratio="anyres"),
        ["config.json: image_aspect_ratio is 'anyres'"],
    ),
    "no tokenizer": (lambda d: (d / "llm" / "tokenizer.model").unlink(), ["no text tokenizer in", "llm"]),
    "broken tokenizer": (
        lambda d: (d / "llm" / "tokenizer.model").write_bytes(b"\xff" * 50),
        ["llm/tokenizer.model cannot be read"],
    ),
    "other vocabulary": (
        change("llm/config.json", vocab_size=500),
        ["llm/config.json: vocab_size is 500", "404"],
    ),
    "fewer tokens": (
        lambda d: (
            (d / "llm" / "added_tokens.json").unlink(),
            change_json(d / "llm" / "tokenizer_config.json", added_tokens_decoder=None),
        ),
        ["vocab_size is 404", "400"],
    ),
    "missing tensor": (
        drop("vision_tower", "rqtransformer.pos_emb_d"),
        ["vision_tower/model.safetensors lacks rqtransformer.pos_emb_d"],
    ),
    "missing codebook": (
        drop("vision_tower", "rqvaesiglip.quantizer.codebooks.0.weight"),
        ["lacks rqvaesiglip.quantizer.codebooks.0.weight"],
    ),
    "other shape": (
        put("mm_projector", "layers.0.bias", torch.zeros(3)),
        ["mm_projector/model.safetensors: layers.0.bias has the shape [3]", "[64]"],
    ),
    "surplus tensor": (
        put("llm", "model.layers.3.input_layernorm.weight", torch.zeros(64)),
        ["llm/model.safetensors holds model.layers.3.input_layernorm.weight"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_before_weights_are_read(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, by the command line too, and with no tensor read."""
    official = copy_of(SHARED, tmp_path / "official")
    spoil, words = FAULTS[fault]
    spoil(official)
    monkeypatch.setattr("vilau_common.weight_files.WeightFiles.tensor", None)
    assert main(["convert", "from-official", str(official), str(tmp_path / "ours")]) == 2
    sentence = capsys.readouterr().err.strip()
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    assert not (tmp_path / "ours").exists()
    with pytest.raises(UserError):
        UnifiedLM.from_official(official)


def test_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "there is no directory" in told("from-official", tmp_path / "nowhere", tmp_path / "out")
    assert "exists" in told("from-official", SHARED, tmp_path)
    assert "already" in told("to-official", SHARED, tmp_path / "out")
    assert "no unified LM in" in told("to-official", tmp_path, tmp_path / "out")
    picture = str(SHARED / "config.json")  # its options are looked at first
    for option, value in (("--dtype", "int8"), ("--device-map", "gpu")):
        assert main(["ask", str(SHARED), picture, "what?", option, value]) == 2
        assert option in capsys.readouterr().err
