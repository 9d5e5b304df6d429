"""From other people's files to packed batches: prepare, tokenize, load, for every kind of source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_lm import POSITIONS, D, K, make_tower
from transformers import PreTrainedTokenizerFast

from vilau_common.config import load_config
from vilau_common.data.loader import LoaderConfig
from vilau_common.data.prepare import SCHEMA_GROUPS, PrepareConfig, prepare
from vilau_common.data.sources.video_frames import video_decoder
from vilau_unified_lm.data import BlendConfig, DocumentDataConfig, MixtureConfig, document_loader
from vilau_unified_lm.packing import IGNORE
from vilau_unified_lm.vocabulary import Vocabulary
from vilau_vision_tower.tokenize import CodesOrigin, TokenizeConfig, tokenize, tower_fingerprint
from vilau_vision_tower.tower import load_tower

COUNT = 24
CONF = Path(__file__).parents[2] / "conf"


def write_images(folder: Path, count: int = COUNT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def write_records(folder: Path, record: Callable[[int], object]) -> str:
    write_images(folder)
    lines = [json.dumps(record(number)) + "\n" for number in range(COUNT)]
    (folder / "records.jsonl").write_text("".join(lines))
    return f"source.records={folder}/records.jsonl"


def conversations(folder: Path) -> list[str]:
    """One picture, two pictures, or none."""

    def record(number: int) -> object:
        images = [f"{(number + n) % COUNT}.png" for n in range(number % 3)]
        asked = "<image>\n" * len(images) + "is there a star?"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": "no"}]
        return {"id": number, "image": images, "conversations": said}

    return [write_records(folder, record)]


def interleaved(folder: Path) -> list[str]:
    def record(number: int) -> object:
        image = {"image_name": f"{number}.png", "matched_text_index": 1}
        return {"text_list": ["a star", "a circle", "a cross"], "image_info": [image]}

    return [write_records(folder, record)]


def edits(folder: Path) -> list[str]:
    def record(number: int) -> object:
        return {"source": f"{number}.png", "instruction": "a star", "target": f"{(number + 1) % COUNT}.png"}

    return [write_records(folder, record)]


def text(folder: Path) -> list[str]:
    return [write_records(folder, lambda number: {"text": f"a star {number} " * 20})]


def videos(folder: Path) -> list[str]:
    av = video_decoder()
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    said = []
    for number in range(COUNT):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for _ in range(4):
                noise = rng.integers(256, size=(32, 48, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")))
            container.mux(stream.encode())
        said.append(json.dumps({"file_name": f"{number}.mp4", "text": "a star"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(said))
    return [f"source.folder={folder}", "source.frames=3"]


# What there is to each: the source's files, its name, the forms, and in a document of each the pictures that are
# trained on. Documents of conversations have from none to two pictures.
KINDS = {
    "conversations": (conversations, ["conversation"], 0),
    "interleaved": (interleaved, ["interleaved"], 0),
    "edits": (edits, ["edit"], 1),
    "text": (text, ["text"], 0),
    "videos": (videos, ["text_to_video", "video_to_text"], 3),
}


@pytest.fixture(scope="module")
def tower_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tower")
    make_tower().save_pretrained(directory / "model")
    return directory


@pytest.mark.parametrize("kind", list(KINDS))
def test_files_become_batches(
    kind: str, tower_run: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write, forms, drawn = KINDS[kind]
    overrides = [f"source={kind}", *write(tmp_path / "files"), f"directory={tmp_path / 'data'}"]
    overrides += ["source.test_share=0.3", "vocabulary_size=null"]
    prepare(load_config("prepare", overrides, PrepareConfig, groups=SCHEMA_GROUPS, directory=CONF))
    data, codes = str(tmp_path / "data"), str(tmp_path / "codes")
    tokenize(TokenizeConfig(tower_directory=str(tower_run), data=data, directory=codes, batch_size=10))
    origin = CodesOrigin.of(load_tower(tower_run), tower_fingerprint(tower_run))
    config = DocumentDataConfig(
        mixture=MixtureConfig(),
        blend=[BlendConfig(directory=codes, form=form) for form in forms],
        row_length=120,
        loader=LoaderConfig(batch_size=2, workers=0, shuffle_buffer=5, packing_buffer=10, max_bad_share=0.0),
    )
    loader = document_loader(config, tokenizer, vocabulary, origin, seed=0, log_directory=tmp_path)
    supervised = pictures = 0
    for _, batch in zip(range(20), loader, strict=False):
        assert ((batch.codes >= 0) & (batch.codes < K)).all() and batch.codes.shape[1:] == (D,)
        assert (batch.text_targets != IGNORE).any()
        supervised += int((batch.visual_targets != IGNORE).sum())
        pictures += len(batch.codes) // POSITIONS
    assert loader.bad_samples == 0 and loader.samples_seen > COUNT
    assert (pictures > 0) == (kind != "text")
    assert (supervised > 0) == (drawn > 0)
    if kind == "edits":
        assert supervised == pictures * POSITIONS // 2
