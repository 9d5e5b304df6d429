"""Readers of official files: what they give, what they refuse, and the numbers of each set."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import public_toys as toys
import pytest

from vilau_common.errors import UserError
from vilau_unified_lm.evaluation.public.captions import Captions, CaptionsConfig
from vilau_unified_lm.evaluation.public.prompts import Geneval, GenevalConfig, Mjhq, MjhqConfig
from vilau_unified_lm.evaluation.public.questions import Answered, Question, QuestionSet
from vilau_unified_lm.evaluation.public.seed import Seed, SeedConfig
from vilau_unified_lm.evaluation.public.vqa import (
    Gqa,
    GqaConfig,
    Textvqa,
    TextvqaConfig,
    Vqav2,
    Vqav2Config,
)
from vilau_unified_lm.evaluation.public.yes_no import PERCEPTION, Mme, MmeConfig, Pope, PopeConfig

SHORT = "\nOne word."


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of captions is there, as far as reading goes."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


def judged(questions: QuestionSet, texts: list[str], listed: list[Question]) -> list[Answered]:
    pairs = zip(listed, texts, strict=True)
    return [Answered(question, text, questions.score(text, question)) for question, text in pairs]


# --- what they read ---------------------------------------------------------------------------------------------


def test_vqav2(tmp_path: Path) -> None:
    questions = Vqav2(Vqav2Config(directory=str(toys.vqav2(tmp_path))))
    listed = questions.read(SHORT)
    assert [(q.id, q.kind, q.text) for q in listed] == [
        ("9000", "yes/no", "is it red?" + SHORT),
        ("9001", "number", "how many?" + SHORT),
        ("25002", "other", "what is it?" + SHORT),
    ]
    assert listed[2].picture == tmp_path / "val2014/COCO_val2014_000000000025.jpg"
    answered = judged(questions, ["Yes.", "two", "the dog"], listed)
    # "2" and "two" are one answer, 8 of 10; 1 of 10 says dog.
    assert [item.score for item in answered] == pytest.approx([1, 1, 0.3])
    assert questions.numbers(answered) == pytest.approx(
        {"accuracy": 2.3 / 3, "accuracy/yes/no": 1, "accuracy/number": 1, "accuracy/other": 0.3}
    )
    assert questions.submission(answered) is None


def test_a_split_whose_answers_only_the_server_knows(tmp_path: Path) -> None:
    directory = str(toys.vqav2(tmp_path / "vqav2"))
    questions = Vqav2(Vqav2Config(directory=directory, split="test-dev2015"))
    listed = questions.read("")
    assert listed[0].picture == tmp_path / "vqav2/test2015/COCO_test2015_000000000009.jpg"
    answered = judged(questions, ["Yes.", "two", "the dog"], listed)
    assert questions.numbers(answered) == {}
    assert questions.submission(answered) == [
        {"question_id": 9000, "answer": "yes"},
        {"question_id": 9001, "answer": "2"},
        {"question_id": 25002, "answer": "dog"},
    ]
    texts = Textvqa(TextvqaConfig(directory=str(toys.textvqa(tmp_path / "text")), split="test"))
    answered = judged(texts, ["Sony"], texts.read(""))
    assert texts.submission(answered) == [{"question_id": 34602, "answer": "sony"}]


def test_gqa(tmp_path: Path) -> None:
    questions = Gqa(GqaConfig(directory=str(toys.gqa(tmp_path))))
    listed = questions.read(SHORT)
    assert [(q.id, q.picture.name, q.kind) for q in listed] == [
        ("201307251", "n161313.jpg", "verify"),
        ("201640614", "n235859.jpg", "query"),
    ]
    assert listed[0].text == "Is it overcast?" + SHORT
    numbers = questions.numbers(
        judged(questions, ["No.", "a woman"], listed)
    )  # an exact match keeps articles
    assert numbers == {"accuracy": 0.5, "accuracy/query": 0, "accuracy/verify": 1}


def test_textvqa(tmp_path: Path) -> None:
    questions = Textvqa(TextvqaConfig(directory=str(toys.textvqa(tmp_path))))
    (question,) = listed = questions.read(SHORT)
    assert question.text == "What brand is it?" + SHORT
    assert question.picture == tmp_path / "train_images/003a8ae2ef43b901.jpg"
    assert questions.score("NOKIA's", question) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert questions.numbers(judged(questions, ["Nokia"], listed)) == {"accuracy": 1}


def test_pope(tmp_path: Path) -> None:
    questions = Pope(PopeConfig(directory=str(toys.pope(tmp_path))))
    listed = questions.read("")
    assert [q.id for q in listed] == [
        f"{split}/{number}" for split in ("random", "popular", "adversarial") for number in (1, 2)
    ]
    assert listed[0].picture == tmp_path / "val2014/COCO_val2014_000000000007.jpg"
    numbers = questions.numbers(judged(questions, ["yes", "no", "yes", "yes", "no", "no"], listed))
    assert numbers["f1/random"] == 1 and numbers["f1/popular"] == pytest.approx(2 / 3)
    assert numbers["f1/adversarial"] == 0
    assert numbers["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert numbers["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert numbers["yes_share"] == pytest.approx(0.5)


def test_mme(tmp_path: Path) -> None:
    questions = Mme(MmeConfig(directory=str(toys.mme(tmp_path))))
    listed = questions.read(SHORT)
    assert len(listed) == 28
    assert listed[0].text == "Is it one?" + SHORT  # in the place of MME's own instruction
    assert questions.read("")[0].text == "Is it one? Please answer yes or no."
    by_kind = {question.kind: question.picture for question in listed}
    assert by_kind["artwork"] == tmp_path / "artwork/images/0001.jpg"
    assert by_kind["code_reasoning"] == tmp_path / "code_reasoning/0001.png"
    # All right but for the second question of each picture of one category.
    texts = ["no" if q.truth == "no" and q.kind != "OCR" else "yes" for q in listed]
    numbers = questions.numbers(judged(questions, texts, listed))
    assert numbers["perception"] == pytest.approx(9 * 200 + 50)
    assert numbers["cognition"] == pytest.approx(4 * 200)
    assert (numbers["accuracy/OCR"], numbers["accuracy_plus/OCR"]) == (0.5, 0)
    assert numbers["accuracy"] == pytest.approx(27 / 28)
    assert numbers["accuracy_plus"] == pytest.approx(13 / 14)


def test_mme_has_its_sums_only_of_all_categories(tmp_path: Path) -> None:
    questions = Mme(MmeConfig(directory=str(toys.mme(tmp_path))))
    listed = [question for question in questions.read("") if question.kind in PERCEPTION]
    numbers = questions.numbers(judged(questions, [question.truth for question in listed], listed))
    assert numbers["perception"] == pytest.approx(2000)
    assert "cognition" not in numbers
    assert "perception" not in questions.numbers(judged(questions, ["yes", "no"], listed[:2]))


def test_seed_by_letter_and_by_likelihood(tmp_path: Path) -> None:
    directory = str(toys.seed_bench(tmp_path))
    questions = Seed(SeedConfig(directory=directory))
    listed = questions.read(SHORT)
    assert [(q.id, q.kind) for q in listed] == [
        ("101669", "Instances Counting"),
        ("101670", "Scene Understanding"),
    ]
    assert listed[0].text == (
        "How many towers?\nA. one\nB. two\nC. three\nD. four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert listed[0].picture == tmp_path / "SEED-Bench-image/1454426_2591111986"
    assert questions.numbers(judged(questions, ["B. two", "no idea"], listed)) == {
        "accuracy": 0.5,
        "accuracy/Instances Counting": 1,
        "accuracy/Scene Understanding": 0,
        "video_questions_left_out": 1,
    }
    bare = Seed(SeedConfig(directory=directory, answer="likelihood")).read(SHORT)[0]
    assert bare.text == "How many towers?" and bare.choices == ("one", "two", "three", "four")


def test_captions(tmp_path: Path, judge: None) -> None:
    questions = Captions(CaptionsConfig(directory=str(toys.captions(tmp_path))))
    (question,) = questions.read(SHORT)
    assert question.text == "describe the picture."
    assert question.picture == tmp_path / "val2014/COCO_val2014_000000000042.jpg"
    assert question.truth == ["A dog runs.", "A brown dog is running on the grass."]


def test_caption_scores_are_those_of_the_coco_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("its tokenizer needs Java")
    from vilau_unified_lm.evaluation.public.captions import caption_scores

    references = {
        "1": ["A brown dog runs on the grass.", "The dog is running."],
        "2": ["Two cups stand on a table.", "There are two white cups."],
    }
    perfect = caption_scores(
        {"1": "a brown dog runs on the grass", "2": "Two cups stand on a table"}, references
    )
    assert perfect["bleu_4"] == pytest.approx(1) and perfect["rouge_l"] == pytest.approx(1)
    swapped = caption_scores({"1": "Two cups stand on a table", "2": "a brown dog runs"}, references)
    assert swapped["cider"] < 0.1 < perfect["cider"]


def test_geneval(tmp_path: Path) -> None:
    file = toys.geneval(tmp_path) / "evaluation_metadata.jsonl"
    prompts = Geneval(GenevalConfig(file=str(file), samples=2))
    drawn = prompts.read()
    assert [(p.id, p.kind) for p in drawn[:3]] == [
        ("00000/0000", "single_object"),
        ("00000/0001", "single_object"),
        ("00001/0000", "counting"),
    ]
    assert drawn[3].file == "00001/samples/0001.png" and drawn[3].text == "a photo of two cups"
    prompts.prepare(tmp_path / "out")
    lines = file.read_text().splitlines()
    kept = (tmp_path / "out/00002/metadata.jsonl").read_text()
    assert json.loads(kept) == json.loads(lines[2])


def test_mjhq(tmp_path: Path) -> None:
    drawn = Mjhq(MjhqConfig(directory=str(toys.mjhq(tmp_path)))).read()
    assert len(drawn) == 4
    assert (drawn[1].kind, drawn[1].text) == ("art", "a blue thing")
    assert drawn[1].file == "art/0000000000000001.png"
    assert drawn[1].reference == tmp_path / "mjhq30k_imgs/art/0000000000000001.jpg"


# --- what they refuse -------------------------------------------------------------------------------------------


def edit(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Rewrites a JSON file."""

    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(change(content)))

    return apply


def replace(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / file).write_text(text) and None  # type: ignore[return-value]


def remove(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


def without(key: str) -> Callable[[Any], Any]:
    """Of the first record of the file's list."""

    def change(content: Any) -> Any:
        name = next(name for name in ("questions", "annotations", "data") if name in content)
        del content[name][0][key]
        return content

    return change


READ: dict[str, Callable[[Path], object]] = {
    "vqav2": lambda root: Vqav2(Vqav2Config(directory=str(toys.vqav2(root)))),
    "gqa": lambda root: Gqa(GqaConfig(directory=str(toys.gqa(root)))),
    "textvqa": lambda root: Textvqa(TextvqaConfig(directory=str(toys.textvqa(root)))),
    "pope": lambda root: Pope(PopeConfig(directory=str(toys.pope(root)))),
    "mme": lambda root: Mme(MmeConfig(directory=str(toys.mme(root)))),
    "seed_bench": lambda root: Seed(SeedConfig(directory=str(toys.seed_bench(root)))),
    "captions": lambda root: Captions(CaptionsConfig(directory=str(toys.captions(root)))),
    "geneval": lambda root: Geneval(
        GenevalConfig(file=str(toys.geneval(root) / "evaluation_metadata.jsonl"))
    ),
    "mjhq": lambda root: Mjhq(MjhqConfig(directory=str(toys.mjhq(root)))),
}
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("name", "harm", "sentence"),
    [
        ("vqav2", remove(QUESTIONS), f"{QUESTIONS} is missing; it comes from visualqa.org"),
        ("vqav2", remove(ANNOTATIONS), f"{ANNOTATIONS} is missing"),
        ("vqav2", replace(QUESTIONS, "{"), f"{QUESTIONS} is no JSON"),
        ("vqav2", edit(QUESTIONS, lambda c: {**c, "questions": []}), "the list 'questions' is empty"),
        ("vqav2", edit(QUESTIONS, lambda c: {"q": 1}), "expected a list named 'questions'"),
        (
            "vqav2",
            edit(QUESTIONS, without("image_id")),
            "questions[0]: expected a whole number named 'image_id'",
        ),
        ("vqav2", edit(ANNOTATIONS, without("answers")), "annotations[0]: expected a list named 'answers'"),
        (
            "vqav2",
            edit(ANNOTATIONS, lambda c: {"annotations": c["annotations"][1:]}),
            "questions[0]: question 9000 has no annotation",
        ),
        (
            "vqav2",
            remove(toys.VAL.format(25)),
            "1 of 2 pictures are missing, such as val2014/COCO_val2014_000000000025.jpg",
        ),
        (
            "gqa",
            replace("testdev_balanced_questions.json", "[]"),
            "expected an object with a question for each id",
        ),
        (
            "gqa",
            replace("testdev_balanced_questions.json", '{"1": 2}'),
            "question 1: expected a string named 'imageId'",
        ),
        ("textvqa", remove("TextVQA_0.5.1_val.json"), "TextVQA_0.5.1_val.json is missing"),
        (
            "textvqa",
            edit("TextVQA_0.5.1_val.json", without("answers")),
            "data[0]: expected a list named 'answers'",
        ),
        (
            "pope",
            remove("coco_pope_popular.json"),
            "coco_pope_popular.json is missing; it comes from github.com",
        ),
        ("pope", replace("coco_pope_random.json", "{}\nx"), "coco_pope_random.json, line 2 is no JSON"),
        ("pope", replace("coco_pope_random.json", ""), "coco_pope_random.json is empty"),
        (
            "pope",
            replace("coco_pope_random.json", '{"label": "maybe"}'),
            "line 1: the label is 'maybe', not yes or no",
        ),
        ("mme", lambda root: shutil.rmtree(root / "OCR"), "the categories OCR are missing"),
        ("mme", remove("count/0001.jpg"), "its picture"),
        ("mme", replace("count/0001.txt", "Is it?\n"), "count/0001.txt, line 1: expected question<tab>Yes"),
        ("mme", remove("artwork/questions_answers_YN/0001.txt"), "artwork has no questions"),
        (
            "seed_bench",
            edit("SEED-Bench.json", without("choice_c")),
            "questions[0]: expected choice_a to choice_d",
        ),
        (
            "seed_bench",
            edit("SEED-Bench.json", lambda c: {"questions": c["questions"]}),
            "an object named 'question_type'",
        ),
        (
            "seed_bench",
            edit("SEED-Bench.json", lambda c: {**c, "questions": c["questions"][2:]}),
            "it has no questions about pictures",
        ),
        (
            "captions",
            edit("annotations/captions_val2014.json", lambda c: {**c, "annotations": c["annotations"][:0]}),
            "the list 'annotations' is empty",
        ),
        (
            "geneval",
            replace("evaluation_metadata.jsonl", '{"tag": "x", "prompt": "y"}'),
            "line 1: the tag is 'x'",
        ),
        ("mjhq", remove("mjhq30k_imgs/people/0000000000000003.jpg"), "1 of 4 pictures are missing"),
        (
            "mjhq",
            replace("meta_data.json", '{"../x": {"category": "art", "prompt": "y"}}'),
            "its id and category 'art' name files, and must be plain names",
        ),
    ],
)
def test_malformed_files_are_told_in_one_sentence(
    tmp_path: Path, judge: None, name: str, harm: Callable[[Path], None], sentence: str
) -> None:
    found = READ[name](tmp_path)
    harm(tmp_path)
    arguments = () if name in ("geneval", "mjhq") else ("",)
    with pytest.raises(UserError, match=re.escape(sentence)):
        found.read(*arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: Pope(PopeConfig(directory="/nowhere")),
            "pope.directory=/nowhere: there is no such directory",
        ),
        (lambda: Geneval(GenevalConfig(file="/nowhere")), "geneval.file=/nowhere: there is no such file"),
        (lambda: GenevalConfig(samples=0), "geneval.samples is 0"),
        (
            lambda: Vqav2(Vqav2Config(directory=".", split="val")),
            "vqav2.split is 'val'; it is one of val2014, ",
        ),
        (lambda: Textvqa(TextvqaConfig(directory=".", split="dev")), "textvqa.split is 'dev'"),
        (lambda: Seed(SeedConfig(directory=".", answer="guess")), "seed_bench.answer is 'guess'"),
    ],
)
def test_settings_that_cannot_be(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        build()


def test_captions_say_what_their_judge_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pycocoevalcap: pip install 'vilau-unified-lm\[captions\]'"):
        Captions(CaptionsConfig(directory="."))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs Java"):
        Captions(CaptionsConfig(directory="."))
