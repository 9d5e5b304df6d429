"""Weights of a directory: every layout gives the same tensors, and what is broken is told before it is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vilau_common.errors import UserError
from vilau_common.weight_files import WeightFiles

TENSORS = {
    "a.weight": torch.randn(3, 4),
    "a.half": torch.randn(5).bfloat16(),
    "b.count": torch.arange(6),
    "b.flag": torch.tensor(True),
}


def write_shards(directory: Path, suffix: str) -> None:
    names = sorted(TENSORS)
    single = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {f"{single}-0000{n + 1}-of-00002.{suffix}": names[2 * n : 2 * n + 2] for n in range(2)}
    for shard, held in shards.items():
        tensors = {name: TENSORS[name] for name in held}
        if suffix == "safetensors":
            save_file(tensors, directory / shard)
        else:
            torch.save(tensors, directory / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (directory / f"{single}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["single", "shards", "bin", "old bin", "bin shards"])
def test_every_layout_gives_the_tensors(tmp_path: Path, layout: str) -> None:
    if layout == "single":
        save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    elif layout in ("bin", "old bin"):
        torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "bin")
    else:
        write_shards(tmp_path, "bin" if "bin" in layout else "safetensors")
    files = WeightFiles(tmp_path)
    assert set(files) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert files[name].shape == tuple(tensor.shape)
        assert files[name].dtype == tensor.dtype
        assert torch.equal(files.tensor(name), tensor)


def told(directory: Path) -> str:
    with pytest.raises(UserError) as error:
        WeightFiles(directory)
    return str(error.value)


@pytest.mark.parametrize("kept", [4, 60, -1])
def test_cut_off_file(tmp_path: Path, kept: int) -> None:
    """Cut within the length, within the header, and at the last byte."""
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:kept])
    sentence = told(tmp_path)
    assert str(file) in sentence and "cut off" in sentence
    if kept == -1:  # the tensor that lies last in the file
        assert any(name in sentence for name in TENSORS)


def test_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"rubbish!")
    assert "its header cannot be read" in told(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no weights in" in told(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    sentence = told(tmp_path)
    assert "model.safetensors.index.json" in sentence and "model-00002-of-00002.safetensors" in sentence


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path) -> None:
    write_shards(tmp_path, "safetensors")
    save_file({"b.count": TENSORS["b.count"]}, tmp_path / "model-00002-of-00002.safetensors")
    assert "b.flag" in told(tmp_path)


def test_index_names_no_files_elsewhere(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "../outside.safetensors")}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside.safetensors, which is missing" in told(inner)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code was run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_run(tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pytorch_model.bin"
    if zipped:
        torch.save({"a": Harmful()}, file)
    else:
        file.write_bytes(pickle.dumps({"a": Harmful()}))
    assert "save it as safetensors" in told(tmp_path)
    assert "code was run" not in capsys.readouterr().out


def test_bin_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    assert "no dictionary" in told(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "cannot be read as weights" in told(tmp_path)


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """A header is enough to know what is there: the tensors' bytes may be anything."""
    file = tmp_path / "model.safetensors"
    save_file({"zeros": torch.zeros(1000)}, file)
    files = WeightFiles(tmp_path)
    content = bytearray(file.read_bytes())
    content[-4000:] = torch.ones(1000).numpy().tobytes()
    file.write_bytes(bytes(content))
    tensor: Tensor = files.tensor("zeros")
    assert torch.equal(tensor, torch.ones(1000))
