"""Composition: typed objects out of YAML and overrides, and one sentence for every mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from vilau_common.config import (
    conf_directory,
    config_to_dict,
    config_to_yaml,
    load_config,
    registered,
    typed_config,
)
from vilau_common.errors import UserError


class Pace(Enum):
    SLOW = 1
    FAST = 2


@dataclass(kw_only=True)
class QuantizerConfig:
    depth: int = 4


@dataclass(kw_only=True)
class EmaConfig(QuantizerConfig):
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {self.decay}")


@dataclass(kw_only=True)
class LookupConfig(QuantizerConfig):
    entropy: float = 1.0


@dataclass(kw_only=True)
class TowerConfig:
    quantizer: QuantizerConfig  # chosen by the group


@dataclass(kw_only=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(kw_only=True)
class TrainingConfig:
    steps: int
    clip: float | None = 1.0
    pace: Pace = Pace.SLOW
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    others: dict[str, OptimizerConfig] = field(default_factory=dict)


@dataclass(kw_only=True)
class TrainConfig:
    tower: TowerConfig
    training: TrainingConfig
    run: Path
    seed: int = 0
    note: str = ""
    tags: list[str] = field(default_factory=list)


GROUPS = {"quantizer": {"ema": EmaConfig, "lookup": LookupConfig}}

FILES = {
    "train": """
        defaults:
          - train_schema
          - quantizer@tower.quantizer: ema
          - _self_
          - experiment: null
        run: runs/toy
        """,
    "quantizer/ema": """
        defaults: [ema_schema, _self_]
        decay: 0.99
        """,
    "quantizer/ema_deep": """
        defaults: [ema_schema, _self_]
        depth: 16
        """,
    "quantizer/lookup": """
        defaults: [lookup_schema, _self_]
        """,
    "quantizer/misspelt": """
        defaults: [ema_schema, _self_]
        decai: 0.99
        """,
    "quantizer/mistyped": """
        defaults: [ema_schema, _self_]
        decay: fast
        """,
    "quantizer/unknown_kind": """
        defaults: [cosine_schema, _self_]
        """,
    "quantizer/broken": """
        defaults: [ema_schema, _self_]
        decay: 0.99: 1
        """,
    "experiment/scenes": """
        # @package _global_
        defaults:
          - override /quantizer@tower.quantizer: lookup
        training:
          steps: 3
          others:
            discriminator: {learning_rate: 2}
        """,
    "experiment/misspelt": """
        # @package _global_
        training:
          stepz: 3
        """,
    "experiment/wrong_group": """
        # @package _global_
        defaults:
          - override /quantiser@tower.quantizer: ema
        """,
    "experiment/no_package": """
        seed: 3
        """,
    "incomplete": """
        defaults: [incomplete_schema, _self_]
        run: runs/toy
        """,
    "no_schema": """
        seed: 3
        """,
}


def write_files(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("".join(line[indent:] + "\n" for line in lines))
    return directory


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("project") / "conf", FILES)


def load(conf: Path, *overrides: str, name: str = "train") -> TrainConfig:
    return load_config(name, overrides, TrainConfig, groups=GROUPS, directory=conf)


def mistake(conf: Path, *overrides: str, name: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        load(conf, *overrides, name=name)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for leak in ("hydra.cc", "append to your", "full_key", "object_type", "Config search path", "_schema'"):
        assert leak not in sentence
    return sentence


# --- what comes out ------------------------------------------------------------------------------------------------


def test_everything_has_its_declared_type(conf: Path) -> None:
    config = load(conf, "training.steps=5", "training.pace=FAST", "training.optimizer.betas=[0.5, 0.9]")
    assert config == TrainConfig(
        tower=TowerConfig(quantizer=EmaConfig(depth=4, decay=0.99)),
        training=TrainingConfig(steps=5, pace=Pace.FAST, optimizer=OptimizerConfig(betas=(0.5, 0.9))),
        run=Path("runs/toy"),
    )
    assert isinstance(config.run, Path)
    assert isinstance(config.training.optimizer.betas, tuple)


def test_group_chooses_the_kind_of_a_child(conf: Path) -> None:
    assert load(conf, "training.steps=1", "quantizer@tower.quantizer=ema_deep").tower.quantizer == EmaConfig(
        depth=16
    )
    lookup = load(conf, "training.steps=1", "quantizer@tower.quantizer=lookup", "tower.quantizer.entropy=2")
    assert lookup.tower.quantizer == LookupConfig(entropy=2.0)


def test_experiment_changes_choices_and_values_and_overrides_win(conf: Path) -> None:
    config = load(conf, "experiment=scenes", "training.others.discriminator.betas=[0, 0.9]")
    assert isinstance(config.tower.quantizer, LookupConfig)
    assert config.training.steps == 3
    assert config.training.others == {"discriminator": OptimizerConfig(learning_rate=2.0, betas=(0.0, 0.9))}
    assert load(conf, "experiment=scenes", "training.steps=4").training.steps == 4


def test_entry_is_added_to_a_mapping(conf: Path) -> None:
    config = load(conf, "training.steps=1", "+training.others={muon: {learning_rate: 2}}")
    assert config.training.others == {"muon": OptimizerConfig(learning_rate=2.0)}


def test_reference_to_another_setting_is_followed(conf: Path) -> None:
    assert load(conf, "training.steps=7", "seed=${training.steps}").seed == 7


def test_plain_values_round_trip(conf: Path) -> None:
    config = load(conf, "experiment=scenes", "training.pace=FAST")
    plain = config_to_dict(config)
    assert plain["run"] == "runs/toy"
    assert plain["training"]["pace"] == "FAST"
    assert plain["training"]["optimizer"]["betas"] == [0.9, 0.95]
    assert plain["tower"] == {"quantizer": {"depth": 4, "entropy": 1.0}}
    assert list(plain) == ["tower", "training", "run", "seed", "note", "tags"]
    assert yaml.safe_load(config_to_yaml(config)) == plain


def test_schemas_do_not_outlive_the_call(conf: Path) -> None:
    load(conf, "training.steps=1")
    known = ConfigStore.instance().repo
    assert "train_schema.yaml" not in known
    assert "ema_schema.yaml" not in known.get("quantizer", {})
    with pytest.raises(UserError, match="quantizer/ema_schema"):  # of another command's groups
        load_config("train", ["training.steps=1"], TrainConfig, groups={}, directory=conf)


def test_configuration_composed_by_hydra_itself_is_typed_too(conf: Path) -> None:
    """What a sweep does: Hydra composes, the same dataclass comes out."""
    with registered("train", TrainConfig, GROUPS), initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("train", ["experiment=scenes"])
    assert typed_config(composed, TrainConfig) == load(conf, "experiment=scenes")


# --- what is told of mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "tower.quantiser.depth=2",
            "tower.quantiser.depth is not a setting of train; did you mean tower.quantizer.depth?",
        ),
        ("training.step=2", "training.step is not a setting of train; did you mean training.steps?"),
        ("depth=2", "depth is not a setting of train; did you mean tower.quantizer.depth?"),
        ("experimnt=scenes", "experimnt is not a setting of train; did you mean experiment?"),
        ("zzz=1", "zzz is not a setting of train; there are tower, training, run, seed, note, tags"),
        ("+zzz=1", "zzz is not a setting, and none can be added there"),
        ("+training.stepz=1", "training.stepz is not a setting, and none can be added there"),
        ("~seed", "seed is a setting, which cannot be removed; give it a value"),
        ("~sed", "sed is nothing that train chooses; did you mean seed?"),
        ("training.steps=abc", "training.steps expects int, got 'abc'"),
        ("training.clip=abc", "training.clip expects float or null, got 'abc'"),
        ("training.pace=quick", "training.pace expects one of SLOW, FAST, got 'quick'"),
        ("seed=1.5", "seed expects int, got 1.5"),
        ("seed=true", "seed expects int, got true"),
        ("seed=null", "seed expects int, got null"),
        ("tags=a", "tags expects a list of str, got 'a'"),
        ("run=[a]", "run expects a path, got ['a']"),
        ("training=3", "training expects a section of settings, got 3"),
        ("tower.quantizer=ema", "tower.quantizer expects a section of settings, got 'ema'"),
        ("training.steps", "'training.steps' is no override: write key=value"),
        ("experiment=scense", "did you mean scenes?"),
        ("quantizer@tower.quantizer=emma", "quantizer has no option 'emma' (there are "),
        ("quantizer=ema", "quantizer is nothing that train chooses; did you mean quantizer@tower.quantizer?"),
        (
            "+experiment=scenes",
            "experiment is chosen already: write experiment=scenes, without the plus sign",
        ),
        ("training.others.muon.learning_rate=1", "one is added with '+training.others={muon: …}'"),
        ("+training.others.muon.learning_rate=1", "one is added with '+training.others={muon: …}'"),
        ("seed=1,2", "seed=1,2 gives several values where one is due; a list is written seed=[1,2]"),
        ("hydra.verbose=true", "hydra.verbose=true would change nothing"),
    ],
)
def test_mistaken_override(conf: Path, override: str, sentence: str) -> None:
    assert sentence in mistake(conf, override)


@pytest.mark.parametrize("override", ["training.steps=[1", "a b=3", "note=${seed"])
def test_malformed_override(conf: Path, override: str) -> None:
    assert mistake(conf, override).startswith(f"{override!r} cannot be read as key=value")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.optimizer.betas=[1,2,3]", "training.optimizer.betas expects 2 values, got 3"),
        ("tags=[a,{b: 1}]", "tags[1] expects str, got a mapping"),
        ("note=${training.stepz}", "note refers to ${training.stepz}, which does not exist"),
        ("note=${unheard:of}", "note holds a reference that cannot be followed"),
        ("tower.quantizer.decay=2", "decay must lie between 0 and 1, not 2.0 (in tower.quantizer)"),
    ],
)
def test_value_that_composes_but_is_wrong(conf: Path, override: str, sentence: str) -> None:
    assert sentence in mistake(conf, "training.steps=1", override)


def test_keys_of_the_chosen_kind_are_suggested(conf: Path) -> None:
    sentence = mistake(conf, "quantizer@tower.quantizer=lookup", "tower.quantizer.entropi=1")
    assert sentence.endswith("did you mean tower.quantizer.entropy?")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "quantizer@tower.quantizer=misspelt",
            "conf/quantizer/misspelt.yaml sets tower.quantizer.decai, which is not a setting of train; "
            "did you mean tower.quantizer.decay?",
        ),
        (
            "quantizer@tower.quantizer=mistyped",
            "conf/quantizer/mistyped.yaml: tower.quantizer.decay expects float, got 'fast'",
        ),
        (
            "quantizer@tower.quantizer=unknown_kind",
            "conf/quantizer/unknown_kind.yaml begins with the schema quantizer/cosine_schema, which train does not",
        ),
        ("quantizer@tower.quantizer=broken", "conf/quantizer/broken.yaml, line 2, is not YAML: "),
        (
            "experiment=misspelt",
            "conf/experiment/misspelt.yaml sets training.stepz, which is not a setting of train",
        ),
        (
            "experiment=wrong_group",
            "conf/experiment/wrong_group.yaml overrides quantiser@tower.quantizer, which is nothing that train "
            "chooses; did you mean quantizer@tower.quantizer?",
        ),
        ("experiment=no_package", "so it must open with the line '# @package _global_'"),
    ],
)
def test_mistake_in_a_file_names_the_file(conf: Path, override: str, sentence: str) -> None:
    assert sentence in mistake(conf, override)


def test_missing_values_are_named(conf: Path) -> None:
    assert mistake(conf) == "training.steps has no value; set training.steps=…"
    sentence = mistake(conf, name="incomplete")
    assert sentence == "tower.quantizer, training.steps have no values; set tower.quantizer=…"


def test_unknown_command_file_and_missing_schema(conf: Path) -> None:
    assert (
        mistake(conf, name="trian")
        == "conf/ has no trian.yaml (there are incomplete, no_schema, train); did you mean train?"
    )
    assert "must begin with" in mistake(conf, name="no_schema")


# --- where the files are ---------------------------------------------------------------------------------------------


def test_directory_is_found_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "notes" / "deep"
    for place in (tmp_path, below):
        (place / "conf").mkdir(parents=True)
    monkeypatch.chdir(below)
    (tmp_path / "conf" / ".vilau_conf").touch()
    assert conf_directory() == tmp_path / "conf"  # the nearer one is of some other project


def test_named_directory_must_exist(tmp_path: Path) -> None:
    assert conf_directory(tmp_path) == tmp_path.resolve()
    with pytest.raises(UserError, match="nowhere does not exist"):
        conf_directory(tmp_path / "nowhere")
