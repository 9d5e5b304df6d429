"""The pictures that a tower is evaluated on, one after the other, from whatever a person has them in:

    a prepared data set     its split (or the whole of it: then its test/) with captions, scenes and labels
    shards, *.tar           WebDataset or img2dataset: jpg, png or webp beside txt or json (captions) and cls (label)
    a folder of pictures    subfolders included; captions as `vilau prepare` reads them; a picture in a subfolder has
                            the first folder's name as its label

Files are decoded ahead in threads and brought to the centre square of the tower's size; damaged ones are skipped.
"""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vilau_common.data.ahead import done_ahead
from vilau_common.data.encoder import BadSample
from vilau_common.data.fields import IMAGE_FIELDS, JSON_FIELD, image_field, json_field
from vilau_common.data.shards import DATASET_FILE, dataset_info, read_shards
from vilau_common.data.sources.image_folder import read_captions
from vilau_common.data.tar_members import samples_in, split_member_name
from vilau_common.data.worlds.base import World
from vilau_common.data.worlds.registry import WORLD_CONFIGS, world_of
from vilau_common.data.worlds.scene import Scene
from vilau_common.errors import UserError
from vilau_common.pictures import Picture, centre_square

TEST = "test"
TEXT_FIELD, LABEL_FIELD = "txt", "cls"
CAPTION_KEYS = ("captions", "caption")

Fields = dict[str, bytes]


@dataclass
class EvaluatedPicture:
    name: str
    image: Picture  # uint8 [S, S, 3]
    captions: list[str]
    label: int | str | None  # class number or class folder
    scene: Scene | None  # of a built-in world


@dataclass
class StoredPicture:
    """A picture as it is stored: not decoded, and its fields not yet looked at."""

    name: str
    read: Callable[[], Fields]
    captions: list[str] = field(default_factory=list)  # beside those in its fields
    folder: str | None = None  # its class folder


@dataclass
class PictureSource:
    """total: how many pictures there are (or at least as many as will be read). stored: starts a pass over them.

    folders: class folders, sorted; of a built-in world its kinds of objects, of which pictures of one object are.
    """

    total: int
    stored: Callable[[], Iterator[StoredPicture]]
    folders: list[str]
    world: World | None = None


def open_pictures(path: Path, limit: int | None = None) -> PictureSource:
    """What `path` holds. Raises UserError where there is nothing to evaluate on.

    limit: so many pictures will be read at most; of shards no more are counted than hold them.
    """
    if not path.is_dir():
        raise UserError(f"data={path}: there is no such directory; name a folder of pictures, or of shards")
    if (path / TEST / DATASET_FILE).is_file():
        path = path / TEST
    if (path / DATASET_FILE).is_file():
        info = dataset_info(path)
        world = world_of(path) if info.info.get("world") in WORLD_CONFIGS else None
        kinds = [] if world is None else world.kinds_of_objects()
        return PictureSource(info.samples, lambda: _prepared(path), kinds, world)
    if tars := sorted(path.rglob("*.tar")):
        return PictureSource(_count(tars, limit), lambda: itertools.chain.from_iterable(map(_tar, tars)), [])
    files = sorted(file for file in path.rglob("*") if _ending(file) in IMAGE_FIELDS)
    if not files:
        raise UserError(
            f"data={path}: there are neither pictures ({', '.join(IMAGE_FIELDS)}) nor *.tar shards in it"
        )
    captions = read_captions(path, files, caption_key=None, optional=True)
    folders = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
    return PictureSource(
        len(files), lambda: (_file(path, file, captions.get(file, [])) for file in files), folders
    )


class Decoding:
    """Iterates over decoded pictures; `skipped` says which could not be decoded, and why."""

    def __init__(
        self, source: PictureSource, size: int, *, limit: int | None, threads: int, max_bad_share: float
    ) -> None:
        """size: of the squares; limit: the first so many only; max_bad_share: of them, above which it stops."""
        self.source, self.size, self.threads = source, size, threads
        self.total = source.total if limit is None else min(limit, source.total)
        self.most_bad = max_bad_share * self.total
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[EvaluatedPicture]:
        """Raises UserError where too many are damaged."""
        stored = itertools.islice(self.source.stored(), self.total)
        decode = partial(_decoded, size=self.size, world=self.source.world)
        for picture in done_ahead(decode, stored, self.threads):
            if isinstance(picture, EvaluatedPicture):
                yield picture
            else:
                self._skip(picture)

    def batches(self, size: int) -> Iterator[list[EvaluatedPicture]]:
        """Lists of `size` pictures; the last may be shorter."""
        pictures = iter(self)
        while batch := list(itertools.islice(pictures, size)):
            yield batch

    def _skip(self, damaged: BadSample) -> None:
        self.skipped.append(str(damaged))
        if len(self.skipped) > self.most_bad:
            raise UserError(
                f"{len(self.skipped)} of {self.total} pictures cannot be used, more than max_bad_share allows; "
                f"the first: {self.skipped[0]}"
            )


def _decoded(stored: StoredPicture, size: int, world: World | None) -> EvaluatedPicture | BadSample:
    try:
        fields = stored.read()
        record = json_field(fields) if JSON_FIELD in fields else {}
        # A key of that name in other people's JSON means something else.
        told = record.get("scene") if world is not None else None
        scene = None if told is None else Scene.from_json(told)
        label = stored.folder if stored.folder is not None else _label(fields)
        if label is None and world is not None and scene is not None:
            label = world.kind_of(scene)
        return EvaluatedPicture(
            name=stored.name,
            image=centre_square(image_field(fields), size),
            captions=stored.captions or _captions(fields, record),
            label=label,
            scene=scene,
        )
    except (BadSample, OSError) as error:
        return BadSample(f"{stored.name}: {error}")


def _captions(fields: Fields, record: dict[str, object]) -> list[str]:
    """The texts that came with a picture; there may be none."""
    found = next((record[key] for key in CAPTION_KEYS if record.get(key)), None)
    if found is None and TEXT_FIELD in fields:
        found = fields[TEXT_FIELD].decode("utf-8", errors="replace").strip()
    texts = found if isinstance(found, list) else [found]
    return [text for text in texts if isinstance(text, str) and text]


def _label(fields: Fields) -> int | None:
    if LABEL_FIELD not in fields:
        return None
    try:
        return int(fields[LABEL_FIELD])
    except ValueError:
        raise BadSample(f"field '{LABEL_FIELD}' is {fields[LABEL_FIELD]!r}, not a number") from None


def _prepared(path: Path) -> Iterator[StoredPicture]:
    for key, fields in read_shards(path):
        yield StoredPicture(key, lambda fields=fields: fields)  # type: ignore[misc]


def _file(root: Path, file: Path, captions: list[str]) -> StoredPicture:
    place = file.relative_to(root)
    folder = place.parts[0] if len(place.parts) > 1 else None
    return StoredPicture(place.as_posix(), lambda: {_ending(file): file.read_bytes()}, captions, folder)


def _tar(path: Path) -> Iterator[StoredPicture]:
    """The samples of one shard: files of one key, side by side."""
    try:
        with tarfile.open(path) as archive:
            files = (member for member in archive if member.isfile())
            for key, members in itertools.groupby(files, lambda member: split_member_name(member.name)[0]):
                fields: Fields = {}
                for member in members:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    fields[split_member_name(member.name)[1]] = content.read()
                yield StoredPicture(f"{path.name}:{key}", lambda fields=fields: fields)  # type: ignore[misc]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {path} cannot be read: {error}") from None


def _count(tars: list[Path], limit: int | None) -> int:
    """Samples in shards; of as many of them as hold `limit`."""
    total = 0
    for tar in tars:
        if limit is not None and total >= limit:
            break
        try:
            total += samples_in(tar)
        except (ValueError, OSError) as error:
            raise UserError(f"shard {tar} cannot be read: {error}") from None
    return total


def _ending(path: Path) -> str:
    return path.suffix[1:].lower()
