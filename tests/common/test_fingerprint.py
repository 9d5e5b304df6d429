"""Fingerprints: equal contents, equal name; any other contents, another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vilau_common.errors import UserError
from vilau_common.fingerprint import vocabulary_fingerprint, weights_fingerprint


def test_weights_in_any_shard_count(tmp_path: Path) -> None:
    def fingerprint(*shards: float) -> str:
        for number, value in enumerate(shards):
            save_file({"weight": torch.full((3,), value)}, tmp_path / f"model-{number}.safetensors")
        return weights_fingerprint(tmp_path)

    names = {fingerprint(*shards) for shards in ((1.0, 2.0), (1.0, 3.0), (2.0, 2.0), (2.0, 1.0))}
    assert len(names) == 4 and fingerprint(1.0, 2.0) in names


def test_no_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights in .*: expected \*.safetensors"):
        weights_fingerprint(tmp_path)


def test_vocabularies_differ_by_tokens_and_by_ids() -> None:
    vocabulary = {"a": 0, "b": 1}
    assert vocabulary_fingerprint(vocabulary) == vocabulary_fingerprint({"b": 1, "a": 0})
    others = ({"a": 1, "b": 0}, {"a": 0, "c": 1}, {"a": 0})
    assert len({vocabulary_fingerprint(each) for each in (vocabulary, *others)}) == 4
