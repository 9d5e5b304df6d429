"""Classes by their prompts, captions by their pictures: against loops that anybody can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from evaluated import WIDTH, Texts, batch_of, in_parts, numbers

from vilau_common.errors import UserError
from vilau_vision_tower.evaluation import retrieval as retrieval_module
from vilau_vision_tower.evaluation import zero_shot as zero_shot_module
from vilau_vision_tower.evaluation.metric import NotComputed
from vilau_vision_tower.evaluation.retrieval import Retrieval
from vilau_vision_tower.evaluation.zero_shot import (
    ClassList,
    ZeroShot,
    class_ranks,
    read_classes,
    read_templates,
)

TEMPLATES = ["a photo of a {}", "{} it is"]


def test_classes_are_the_means_of_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot_module, "TEXTS_AT_ONCE", 5)
    texts: Any = Texts()
    names = [f"thing {number}" for number in range(9)]
    labels = [index % 9 for index in range(30)]
    batch = batch_of(30, labels=labels)
    found = numbers(ZeroShot(texts, ClassList(names, {}), TEMPLATES), *in_parts(batch, 7))
    assert max(texts.calls) == 5
    prototypes = []
    for name in names:
        prompts = torch.stack([texts.known[template.replace("{}", name)] for template in TEMPLATES])
        prototypes.append(F.normalize(prompts.mean(dim=0), dim=0))
    order = (batch.embeddings @ torch.stack(prototypes).T).argsort(dim=1, descending=True).tolist()
    assert found["zero_shot_top1"] == sum(labels[i] == row[0] for i, row in enumerate(order)) / 30
    assert found["zero_shot_top5"] == sum(labels[i] in row[:5] for i, row in enumerate(order)) / 30
    assert 0 < found["zero_shot_top1"] < found["zero_shot_top5"]


def test_of_few_classes_there_is_no_top5_and_unlabelled_pictures_do_not_count() -> None:
    texts: Any = Texts({"a": torch.eye(WIDTH)[0], "b": torch.eye(WIDTH)[1]})
    embeddings = torch.eye(WIDTH)[[0, 1, 0]]
    metric = ZeroShot(texts, ClassList(["a", "b"], {"A": 0, "B": 1}), ["{}"])
    found = numbers(metric, batch_of(3, labels=["A", "B", None], embeddings=embeddings))
    assert found == {"zero_shot_top1": 1.0}
    with pytest.raises(NotComputed, match="needs labels"):
        numbers(ZeroShot(texts, ClassList(["a", "b"], {}), ["{}"]), batch_of(2))
    with pytest.raises(UserError, match="the class 2, which the list of 2 classes has not"):
        metric.update(batch_of(1, labels=[2]))


def test_of_equal_classes_the_first_wins() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0]] * 3 + [[torch.nan] * 3])
    assert class_ranks(scores, torch.tensor([0, 1, 2, 1])).tolist() == [0, 2, 1, 3]


def test_lines_of_a_class_list_belong_to_sorted_folders_or_to_those_that_they_name(tmp_path: Path) -> None:
    plain, named = tmp_path / "plain.txt", tmp_path / "named.txt"
    plain.write_text("# two classes\ntench\n\ngoldfish, a fish\n")
    listed = read_classes(str(plain), ["n01", "n02"])
    assert (listed.names, listed.number("n02"), listed.number(1)) == (["tench", "goldfish, a fish"], 1, 1)
    named.write_text("n02\tgoldfish\nn01\ttench\n")
    assert read_classes(str(named), ["n01", "n02"]).number("n02") == 0
    assert read_classes(str(named), ["n01"]).number("n01") == 1, "some of the classes are enough"
    with pytest.raises(UserError, match=r"does not name 2 of the 3 class folders .*, such as n03"):
        read_classes(str(named), ["n01", "n03", "n04"])
    with pytest.raises(UserError, match=r"has 2 lines, but the pictures lie in 3 class folders"):
        read_classes(str(plain), ["n01", "n02", "n03"])
    by_folder = read_classes("folders", ["siamese_cat", "tench"])
    assert (by_folder.names, by_folder.number("tench")) == (["siamese cat", "tench"], 1)
    with pytest.raises(NotComputed, match="lie in no class folders"):
        read_classes("folders", [])
    plain.write_text("n01\ttench\ngoldfish\n")
    with pytest.raises(UserError, match="some lines name a folder"):
        read_classes(str(plain), [])
    with pytest.raises(UserError, match="classes=nowhere.txt: there is no such text file"):
        read_classes("nowhere.txt", [])


def test_lists_that_come_along(tmp_path: Path) -> None:
    assert len(read_classes("imagenet", []).names) == 1000
    assert read_classes("imagenet", []).names[0] == "tench"
    templates = read_templates("openai_imagenet")
    assert len(set(templates)) == 80
    assert "a bad photo of a {}." in templates
    assert read_templates("simple") == ["a photo of a {}"]
    own = tmp_path / "own.txt"
    own.write_text("this is\n")
    with pytest.raises(UserError, match=r"'this is' must hold \{\} once"):
        read_templates(str(own))


def test_retrieval_finds_own_captions_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_module, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(retrieval_module, "TEXTS_AT_ONCE", 4)
    texts: Any = Texts()
    # Two captions each; every third picture shares one with its neighbour.
    captions = [[f"caption {index}", f"shared {index // 3}"] for index in range(20)]
    batch = batch_of(20, captions=captions)
    found = numbers(Retrieval(texts, pictures=100, captions=5), *in_parts(batch, 6))
    listed = list(texts.known)
    scores = batch.embeddings @ torch.stack([texts.known[text] for text in listed]).T
    for top in (1, 5, 10):
        nearest = scores.topk(top, dim=1).indices.tolist()
        hits = [any(listed[t] in captions[i] for t in row) for i, row in enumerate(nearest)]
        assert found[f"retrieval_image_to_text_r{top}"] == pytest.approx(sum(hits) / 20)
        nearest = scores.T.topk(top, dim=1).indices.tolist()
        hits = [any(listed[t] in captions[i] for i in row) for t, row in enumerate(nearest)]
        assert found[f"retrieval_text_to_image_r{top}"] == pytest.approx(sum(hits) / len(listed))
    assert (found["retrieval_pictures"], found["retrieval_texts"]) == (20, 27)
    assert 0 < found["retrieval_image_to_text_r1"] < found["retrieval_image_to_text_r10"] < 1


def test_retrieval_takes_so_many_pictures_and_captions() -> None:
    texts: Any = Texts()
    captions = [["", ""], *([f"first {i}", f"second {i}"] for i in range(9))]
    captions[0] = []
    found = numbers(Retrieval(texts, pictures=4, captions=1), *in_parts(batch_of(10, captions=captions), 3))
    assert (found["retrieval_pictures"], found["retrieval_texts"]) == (4, 4)
    assert set(texts.known) == {f"first {i}" for i in range(4)}
    with pytest.raises(NotComputed, match="retrieval needs captions"):
        numbers(Retrieval(texts, 4, 1), batch_of(3))


def test_a_model_that_tells_nothing_apart_finds_nothing() -> None:
    same = torch.eye(WIDTH)[0]
    captions = [[f"caption {index}"] for index in range(20)]
    texts: Any = Texts({caption: same for (caption,) in captions})
    found = numbers(Retrieval(texts, 20, 1), batch_of(20, captions=captions, embeddings=same.expand(20, -1)))
    assert all(value == 0 for name, value in found.items() if "_r" in name)
