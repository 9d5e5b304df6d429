"""Small pictures and tars for the tests of sources."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilau_common.data.prepare import PrepareConfig, prepare
from vilau_common.data.shards import read_shards
from vilau_common.data.sources.base import SourceConfig
from vilau_common.data.sources.video_frames import video_decoder

SIDE = 8


def picture(number: int, file_format: str = "PNG", side: int = SIDE) -> bytes:
    """A plain picture that tells its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side + 2, 3), number, np.uint8)).save(file, file_format)
    return file.getvalue()


def write_pictures(folder: Path, names: list[str]) -> Path:
    """A picture file for each name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]], pax: bool = False) -> None:
    """A tar as img2dataset writes it; pax: with the extended headers that Python writes by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as archive:
        for key, fields in samples.items():
            for field, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(content)
                member.mtime = 1.5 if pax else 1  # type: ignore[assignment]
                archive.addfile(member, io.BytesIO(content))


def img2dataset_sample(number: int, **changes: Any) -> dict[str, bytes]:
    """Fields of one sample; a change to None leaves a field out."""
    record = {"url": f"http://{number}.jpg", "caption": f"picture {number}", "alt": ["one", f"alt {number}"]}
    fields = {
        "jpg": picture(number, "JPEG"),
        "txt": f"picture {number}".encode(),
        "json": json.dumps({**record, "status": "success"}).encode(),
        **changes,
    }
    return {name: content for name, content in fields.items() if content is not None}


def run_prepare(source: SourceConfig, directory: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """`vilau prepare`; the records of each split, with the picture's field and content as `image`."""
    prepare(PrepareConfig(directory=str(directory), source=source, samples_per_shard=7, **settings))
    return {path.parent.name: records(path.parent) for path in sorted(directory.glob("*/dataset.json"))}


def records(directory: Path) -> list[dict[str, Any]]:
    """What a split holds."""
    found = []
    for _, fields in read_shards(directory):
        record = json.loads(fields["json"])
        ((field, content),) = [(name, value) for name, value in fields.items() if name not in ("json", "txt")]
        found.append({**record, "image": (field, content)})
    return found


@dataclasses.dataclass
class Stored:
    """A prepared sample: its record, and its pictures by field."""

    record: dict[str, Any]
    pictures: dict[str, bytes]


def run_prepare_documents(
    source: SourceConfig, directory: Path, vocabulary_size: int | None = None
) -> dict[str, list[Stored]]:
    """`vilau prepare` of documents with any number of pictures; the samples of each split."""
    prepare(PrepareConfig(directory=str(directory), source=source, vocabulary_size=vocabulary_size))
    found: dict[str, list[Stored]] = {}
    for path in sorted(directory.glob("*/dataset.json")):
        found[path.parent.name] = []
        for _, fields in read_shards(path.parent):
            record = json.loads(fields.pop("json"))
            found[path.parent.name].append(Stored(record, fields))
    return found


def write_lines(path: Path, records: Sequence[object]) -> Path:
    """A record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_video(path: Path, frames: int, *, side: int = 16, rotation: int = 0, codec: str = "mpeg4") -> Path:
    """A video of plain frames, wider than high, each brighter than the one before, from 0 to 250."""
    av = video_decoder()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 2 * side, side, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            grey = np.full((side, 2 * side, 3), round(250 * number / max(1, frames - 1)), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode())
    return path
