"""`vilau sweep`: a Hydra multirun over towers, with any sweeper and launcher that Hydra has.

    vilau sweep                                        conf/sweep/codebook_depth.yaml, one point after the other
    vilau sweep hydra/launcher=joblib                  several points at once on this machine
    vilau sweep hydra/launcher=slurm hydra.launcher.partition=…
    vilau sweep tower.quantizer.depth=1,2,4,8 sweep=…  other values, another file of conf/sweep/

The base of every point is conf/train_tower.yaml: in a sweep its schema is `SweepPointConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from vilau_common.config import conf_directory, explained, load_config
from vilau_common.data import prepare as data_preparation
from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.shards import DATASET_FILE
from vilau_common.errors import UserError
from vilau_common.launch import multirun
from vilau_common.report.sweep import build_sweep_report
from vilau_common.run import RunDirectory
from vilau_vision_tower.clip.config import SiglipClipConfig
from vilau_vision_tower.sweep.config import SweepPointConfig
from vilau_vision_tower.sweep.point import run_point
from vilau_vision_tower.sweep.table import check_finished, write_table
from vilau_vision_tower.train import SCHEMA_GROUPS
from vilau_vision_tower.train_clip import TrainClipConfig, train_clip

BASE = "train_tower"
GROUP = "sweep"
DEFAULT = "codebook_depth"


def sweep(overrides: Sequence[str], config_directory: Path | None = None) -> None:
    """Run every point that is not finished; write <directory>/sweep.csv and report/index.html.

    overrides: of train-tower, with several values where a setting is swept, and Hydra's own (hydra/launcher=…); of them
    sweep=NAME chooses a file of conf/sweep/. UserError: a mistake in them, before anything is computed; or, after the
    report, points that failed or were stopped.
    """
    place = conf_directory(config_directory)
    chosen = with_group(overrides)
    base = first_point(chosen, place)
    make_first(base, place)
    directory = Path(base.directory)
    try:
        multirun(BASE, SweepPointConfig, SCHEMA_GROUPS, run_point, chosen, place)
    finally:  # what there is, also where a launcher or a signal ended the sweep early
        table = write_table(directory)
        if table is not None:
            page = build_sweep_report(table)
            print(f"table:  {table}\nreport: {page}")
    check_finished(directory)


def with_group(overrides: Sequence[str]) -> list[str]:
    """The overrides with the sweep's own file, which train-tower's configuration does not know, added to it."""
    named = [override for override in overrides if override.startswith(f"{GROUP}=")]
    rest = [override for override in overrides if override not in named]
    return [f"+{named[-1]}" if named else f"+{GROUP}={DEFAULT}", *rest]


def first_point(overrides: Sequence[str], place: Path) -> SweepPointConfig:
    """The configuration with the first of each setting's values. UserError: see `load_config`."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(explained(error, BASE, place, overrides)) from error
    single = []
    for text, override in zip(overrides, parsed, strict=True):
        if override.key_or_group.startswith("hydra"):
            continue  # Hydra's own: load_config has no use for them
        if override.is_sweep_override() and not override.is_discrete_sweep():
            continue  # an interval, of which a sweeper chooses
        if override.is_sweep_override():
            text = f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
        single.append(text)
    return load_config(BASE, single, SweepPointConfig, groups=SCHEMA_GROUPS, directory=place)


def make_first(base: SweepPointConfig, place: Path) -> None:
    """Prepare the data and train the CLIP stand-in, where the sweep says how and they do not stand."""
    data = base.data.directory
    if base.first.prepare is not None and not (Path(data) / "train" / DATASET_FILE).is_file():
        overrides = [f"directory={data}", *base.first.prepare]
        prepare(
            load_config(
                "prepare", overrides, PrepareConfig, groups=data_preparation.SCHEMA_GROUPS, directory=place
            )
        )
    if base.first.clip is None:
        return
    if not isinstance(base.tower.clip, SiglipClipConfig):
        raise UserError(
            "first.clip makes the stand-in of clip=stand_in; with another CLIP set first.clip=null"
        )
    clip = base.tower.clip.pretrained
    if RunDirectory(clip).finished() is None and not (Path(clip) / "config.json").is_file():
        overrides = [f"directory={clip}", f"data.directory={data}", *base.first.clip]
        train_clip(load_config("train_clip", overrides, TrainClipConfig, directory=place))
