"""LLaVA-style conversations: what becomes of them, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from source_toys import picture, run_prepare_documents, write_lines, write_pictures, write_video

from vilau_common.data.shards import dataset_info
from vilau_common.data.sources.base import Unusable
from vilau_common.data.sources.conversations import Conversations, ConversationsConfig
from vilau_common.errors import UserError


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def stored(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "text": text} for n, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures."""
    return write_pictures(tmp_path / "images", [f"coco/{number:02d}.png" for number in range(40)])


def config(path: Path, folder: Path | None = None, **settings: Any) -> ConversationsConfig:
    return ConversationsConfig(
        records=str(path), folder=None if folder is None else str(folder), **{"test_share": 0.3, **settings}
    )


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_pictures_go_with_their_conversations(folder: Path, tmp_path: Path, ending: str) -> None:
    records = [
        {"id": str(n), "image": f"coco/{n:02d}.png", "conversations": turns("<image>\nWhat?", f"Number {n}.")}
        for n in range(40)
    ]
    records += [{"id": "text", "conversations": turns(f"Say {n}.", f"{n}.")} for n in range(40)]
    if ending == ".json":
        path = tmp_path / "llava.json"
        path.write_text(json.dumps(records))
    else:
        path = write_lines(tmp_path / "llava.jsonl", records)
    found = run_prepare_documents(config(path, folder), tmp_path / "data", vocabulary_size=300)
    assert found.keys() == {"train", "test"} and all(found.values())
    seen = []
    for sample in [*found["train"], *found["test"]]:
        line = int(sample.record["key"].rpartition(":")[2]) - 1
        seen.append(line)
        expected = records[line]["conversations"]
        assert [turn["text"] for turn in sample.record["conversation"]] == [t["value"] for t in expected]
        assert sample.record["pictures"] == len(sample.pictures) == (line < 40)
        if line < 40:
            assert sample.pictures == {"png": picture(line)}
    assert sorted(seen) == list(range(80))
    assert (tmp_path / "data" / "tokenizer" / "tokenizer.json").is_file()


def test_several_pictures_and_turns_and_other_names(folder: Path, tmp_path: Path) -> None:
    names = ["coco/03.png", "coco/01.png"]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<image> or <image>?"}]
    messages += [{"role": "assistant", "content": "Both."}]
    records = [{"images": names, "messages": messages}]
    records += [{"image": names, "conversations": turns("<image>", "a", "<image>", "b")}] * 20
    source = Conversations(config(write_lines(tmp_path / "a.jsonl", records), folder))
    first, second = [sample for _, sample in source.samples()][:2]
    assert first.record["conversation"] == [
        {"role": "system", "text": "Be kind."},
        {"role": "user", "text": "<image> or <image>?"},
        {"role": "assistant", "text": "Both."},
    ]
    assert first.pictures == [("png", picture(3)), ("png", picture(1))]
    assert second.record["conversation"] == stored("<image>", "a", "<image>", "b")
    # Train and test share no picture.
    assert len({sample.split for _, sample in source.samples()}) == 1


@pytest.mark.parametrize("placeholder", ["<video>", "<image>"])
def test_videos_are_their_frames(folder: Path, tmp_path: Path, placeholder: str) -> None:
    write_video(folder / "clip.mp4", 6)
    record = {"video": "clip.mp4", "conversations": turns(f"{placeholder}\nWhat?", "A change of light.")}
    both = {"image": "coco/01.png", "video": "clip.mp4", "conversations": turns("<image> in <video>?", "No.")}
    path = write_lines(tmp_path / "a.jsonl", [record, both])
    one, two = [sample for _, sample in Conversations(config(path, folder, frames=3)).samples()]
    assert one.record["conversation"] == stored("<video>\nWhat?", "A change of light.")
    assert (one.record["videos"], one.record["pictures"]) == ([3], 3)
    assert (two.record["videos"], two.record["pictures"]) == ([3], 4)
    assert two.pictures[0] == ("png", picture(1)) and two.pictures[1:] == one.pictures


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"image": "coco/01.png", "conversations": turns("What?", "a")},
            "1 image, but 0 <image> in the text",
        ),
        ({"conversations": turns("<image>What?", "a")}, "0 images, but 1 <image> in the text"),
        (
            {"image": "coco/99.png", "conversations": turns("<image>", "a")},
            "99.png cannot be read: No such file",
        ),
        ({"image": "a.txt", "conversations": turns("<image>", "a")}, "a.txt does not end as a picture does"),
        ({"video": "a.mp4", "conversations": turns("<video>", "a")}, "a.mp4 cannot be decoded"),
        ({"image": 3, "conversations": turns("<image>", "a")}, "image: expected a file or a list"),
        ({"image": "coco/01.png"}, "no conversations: expected a list of objects with from and value"),
        ({"conversations": turns("What?")}, "does not end with an answer"),
        ({"conversations": turns("What?", " ")}, "turn 2, of the role 'assistant', is empty"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "turn 1 is from 'robot'; known are"),
        ({"conversations": [{"from": "human"}]}, "turn 1 is no object with from and value"),
        (["a"], "the record is no object"),
    ],
)
def test_what_cannot_be_used_is_told(folder: Path, tmp_path: Path, record: object, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record])
    ((position, unusable),) = Conversations(config(path, folder)).samples()
    assert isinstance(unusable, Unusable) and position == 1
    assert unusable.key == "a.jsonl:1" and reason in unusable.reason


def test_a_few_of_them_are_counted_and_many_stop_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"image": f"coco/{n:02d}.png", "conversations": turns("<image>", "a")} for n in range(39)]
    path = write_lines(tmp_path / "a.jsonl", [*good, {"conversations": []}])
    with pytest.raises(UserError, match="1 of 40 conversations of conversations cannot be used"):
        run_prepare_documents(config(path, folder), tmp_path / "data")
    found = run_prepare_documents(config(path, folder, max_bad_share=0.05), tmp_path / "data")
    assert sum(map(len, found.values())) == 39
    assert "1 of 40 conversations are left out: a.jsonl:40: no conversations" in capsys.readouterr().out


def test_a_picture_that_comes_later_is_prepared(folder: Path, tmp_path: Path) -> None:
    records = [{"image": f"coco/{n:02d}.png", "conversations": turns("<image>", "a")} for n in range(41)]
    path = write_lines(tmp_path / "a.jsonl", records)
    settings = config(path, folder, max_bad_share=0.05)
    run_prepare_documents(settings, tmp_path / "data")
    before = (tmp_path / "data/train/dataset.json").stat().st_mtime_ns
    run_prepare_documents(settings, tmp_path / "data")
    assert (tmp_path / "data/train/dataset.json").stat().st_mtime_ns == before
    write_pictures(folder, ["coco/40.png"])
    found = run_prepare_documents(settings, tmp_path / "data")
    assert sum(map(len, found.values())) == 41


def test_records_that_cannot_be_read_are_named(folder: Path, tmp_path: Path) -> None:
    for content, ending, reason in (
        ("{", ".jsonl", "line 1 is not JSON"),
        ("{}\n{", ".json", "is not JSON: .*; one record a line belongs in a .jsonl file"),
        ("{}", ".json", "holds no list of records"),
    ):
        path = tmp_path / f"bad{ending}"
        path.write_text(content)
        with pytest.raises(UserError, match=reason):
            Conversations(config(path, folder))
    with pytest.raises(UserError, match="source.records is not set; give a file"):
        Conversations(ConversationsConfig())
    with pytest.raises(UserError, match=r"source.records: no \*.json or \*.jsonl in .*images"):
        Conversations(config(folder))
    with pytest.raises(UserError, match="source.folder: there is no folder nowhere"):
        Conversations(config(write_lines(tmp_path / "a.jsonl", [{}]), Path("nowhere")))
    with pytest.raises(UserError, match="source.frames is 0"):
        ConversationsConfig(frames=0)


def test_damaged_pictures_are_found_where_a_set_must_be_whole(folder: Path, tmp_path: Path) -> None:
    records = [{"image": f"coco/{n:02d}.png", "conversations": turns("<image>", "a")} for n in range(40)]
    path = write_lines(tmp_path / "a.jsonl", records)
    for number in range(40):
        (folder / f"coco/{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"image field 'png' cannot be decoded"):
        run_prepare_documents(config(path, folder, max_bad_share=0.1), tmp_path / "data")
    assert not (tmp_path / "data/train").exists()
    assert len([1 for _ in Conversations(config(path)).samples()]) == 40  # by default beside the records
    with pytest.raises(UserError, match="not prepared"):
        dataset_info(tmp_path / "data/train")
