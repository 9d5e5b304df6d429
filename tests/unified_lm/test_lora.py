"""LoRA: what it trains, that merging changes nothing, and that the saved model needs no PEFT."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbones import save_backbone
from tiny_lm import CONTEXT, D, K, all_forms, assert_same_state, lm_config, make_tower, objective, state_of
from tiny_run import config_for
from transformers import AutoModelForCausalLM

from vilau_common.errors import UserError
from vilau_common.training.task import check_parameter_groups
from vilau_unified_lm.backbone import PretrainedBackboneConfig
from vilau_unified_lm.build import build_lm
from vilau_unified_lm.document import DocumentBuilder
from vilau_unified_lm.lora import ADAPTER, Adapters, LoraConfig
from vilau_unified_lm.model import UnifiedLM, load_unified_lm
from vilau_unified_lm.packing import MixedSequence, pack
from vilau_unified_lm.pretrained import PretrainedBackbone, find_pretrained
from vilau_unified_lm.task import UnifiedTask
from vilau_unified_lm.train import train_lm
from vilau_unified_lm.vocabulary import Vocabulary

CONFIG = LoraConfig(rank=3, alpha=8)


@pytest.fixture(params=["llama", "llama_tied"])
def adapted(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[UnifiedLM, Adapters, PretrainedBackbone, MixedSequence]:
    """A unified LM around a trained backbone with adapters, and a batch."""
    save_backbone(tmp_path / "hf", request.param)
    config = replace(lm_config(), backbone=PretrainedBackboneConfig(pretrained=str(tmp_path / "hf")))
    pretrained = find_pretrained(config.backbone)
    assert pretrained is not None
    vocabulary = Vocabulary.from_tokenizer(pretrained.tokenizer, K, D)
    model = build_lm(config, make_tower(), vocabulary, pretrained).eval()
    documents = all_forms(DocumentBuilder(pretrained.tokenizer, vocabulary))
    batch = pack([[document] for document in documents], CONTEXT, D)
    return model, Adapters(model.llm, CONFIG, vocabulary.special_ids), pretrained, batch


def train_some(model: UnifiedLM, task: UnifiedTask, batch: MixedSequence, rate: float = 0.05) -> None:
    parameters = [weight for group in task.parameter_groups() for weight in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        objective(model, batch).total.backward()
        optimizer.step()


def test_adapters_change_nothing_at_first_and_are_all_that_trains_of_the_backbone(
    adapted: tuple[UnifiedLM, Adapters, PretrainedBackbone, MixedSequence],
) -> None:
    model, adapters, pretrained, batch = adapted
    vocabulary = Vocabulary.from_tokenizer(pretrained.tokenizer, K, D)
    plain = pretrained.load(vocabulary).eval()
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        assert torch.equal(model.llm(input_ids=ids).logits, plain(input_ids=ids).logits)
    task = UnifiedTask(model, pretrained.tokenizer, adapters=adapters)
    groups = task.parameter_groups()
    check_parameter_groups(model, groups)
    trained = {name for name, weight in model.llm.named_parameters() if weight.requires_grad}
    low_rank = {name for name in trained if "lora_" in name}
    assert len(low_rank) == 2 * 2 * 7  # two factors of seven matrices in two layers
    rows = trained - low_rank
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert all("trainable_tokens" in name for name in rows) and len(rows) == (1 if tied else 2)
    matrices = {id(weight) for group in groups if group.matrices for weight in group.parameters}
    assert not {id(weight) for weight in model.llm.parameters()} & matrices
    before = state_of(model)
    train_some(model, task, batch)
    after = state_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.removeprefix("llm.") for name in moved if name.startswith("llm.")} == trained
    # Of the backbone a checkpoint holds the adapters alone; tied ends name the same rows twice.
    kept = {name for name in task.trained_state() if name.startswith("llm.")}
    assert kept == {
        f"llm.{name}"
        for name, weight in model.llm.named_parameters(remove_duplicate=False)
        if weight.requires_grad
    }


def test_the_merged_model_says_what_the_adapted_one_did_and_loads_without_peft(
    adapted: tuple[UnifiedLM, Adapters, PretrainedBackbone, MixedSequence], tmp_path: Path
) -> None:
    model, adapters, pretrained, batch = adapted
    task = UnifiedTask(model, pretrained.tokenizer, adapters=adapters)
    train_some(model, task, batch)
    with torch.no_grad():
        before = model.logits(batch)
    plain = pretrained.load(Vocabulary.from_tokenizer(pretrained.tokenizer, K, D)).eval()
    ids = batch.token_ids[2:3, :20]
    with torch.no_grad():
        adapted_logits = model.llm(input_ids=ids).logits
        assert (adapted_logits - plain(input_ids=ids).logits).abs().max() > 0.01
    directory = tmp_path / "model"
    task.save_model(directory)
    loaded = load_unified_lm(directory)
    assert type(loaded.llm).__name__ == "LlamaForCausalLM"
    assert not [name for name in loaded.state_dict() if "lora" in name or "token_adapter" in name]
    with torch.no_grad():
        for merged in (model.eval(), loaded):
            after = merged.logits(batch)
            torch.testing.assert_close(after.text, before.text, rtol=0, atol=1e-5)
            torch.testing.assert_close(after.visual, before.visual, rtol=0, atol=1e-5)
    # The adapters by themselves are PEFT's own files.
    import peft

    onto_plain = peft.PeftModel.from_pretrained(plain, str(directory / ADAPTER))
    with torch.no_grad():
        torch.testing.assert_close(onto_plain(input_ids=ids).logits, adapted_logits, rtol=0, atol=1e-5)


def test_named_layers_alone_are_adapted(tmp_path: Path) -> None:
    llm = save_backbone(tmp_path, "llama")
    Adapters(copy.deepcopy(llm), LoraConfig(rank=2), [1])
    some = copy.deepcopy(llm)
    Adapters(some, LoraConfig(rank=2, target_modules=["q_proj", "v_proj"]), [1])
    adapted = {name.split(".")[-4] for name, _ in some.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"lm.lora.target_modules \['query'\] does not fit the backbone"):
        Adapters(llm, LoraConfig(rank=2, target_modules=["query"]), [1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": -1}, "lm.lora.rank is -1"),
        ({"alpha": 0}, "lm.lora.alpha is 0"),
        ({"dropout": 1}, "dropout is 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    CONFIG.validate()
    with pytest.raises(UserError, match=sentence):
        replace(CONFIG, **changes).validate()


def test_train_lm_with_adapters_goes_on_and_starts_another_stage(ready: Path, tmp_path: Path) -> None:
    """Through the command's function, resumed after a crash, and merged for what comes after."""
    save_backbone(tmp_path / "hf", "llama_tied")
    config = config_for(ready, tmp_path / "run", steps=3, checkpoint_every=2, ema_decay=None)
    config = replace(
        config,
        lm=replace(
            config.lm,
            text_tokenizer=None,
            backbone=PretrainedBackboneConfig(pretrained=str(tmp_path / "hf")),
            lora=LoraConfig(rank=2, dropout=0.1),
        ),
    )
    train_lm(config)
    run = tmp_path / "run"
    expected = state_of(load_unified_lm(run))
    saved = json.loads((run / "model" / ADAPTER / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (2, 16, 0.1)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step_000003")
    (run / "finished.json").unlink()
    train_lm(config)
    assert_same_state(state_of(load_unified_lm(run)), expected)
    later = replace(
        config,
        directory=str(tmp_path / "later"),
        lm=replace(config.lm, start=str(run), lora=LoraConfig()),
        training=replace(config.training, steps=1),
    )
    train_lm(later)
    assert load_unified_lm(tmp_path / "later").config.backbone_config.vocab_size == 304


def test_a_saved_backbone_is_the_librarys_own(
    adapted: tuple[UnifiedLM, Adapters, PretrainedBackbone, MixedSequence], tmp_path: Path
) -> None:
    """Merged, it can be saved by itself and read by transformers."""
    model, adapters, pretrained, batch = adapted
    train_some(model, UnifiedTask(model, pretrained.tokenizer, adapters=adapters), batch)
    adapters.merge()
    model.llm.save_pretrained(tmp_path / "alone")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float32)
    assert_same_state(state_of(alone), state_of(model.llm))
