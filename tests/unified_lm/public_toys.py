"""Public data sets at toy size, in exactly the layout of their official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilau_unified_lm.evaluation.public.yes_no import COGNITION, PERCEPTION

# COCO pictures are wider than high, as a rule.
SIZE = (40, 30)
VAL = "val2014/COCO_val2014_{:012d}.jpg"


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_picture(path: Path, seed: int, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


def vqav2(root: Path) -> Path:
    """Two questions about one picture, one about another; val2014 with answers, test-dev2015 without."""
    asked = [(9, "is it red?"), (9, "how many?"), (25, "what is it?")]
    answers = [["yes"] * 10, ["2"] * 2 + ["two"] * 6 + ["three"] * 2, ["A dog."] + ["cat"] * 9]
    kinds = ["yes/no", "number", "other"]
    for split, folder in (("val2014", "val2014"), ("test-dev2015", "test2015")):
        questions = [
            {"image_id": image, "question": text, "question_id": image * 1000 + number}
            for number, (image, text) in enumerate(asked)
        ]
        meta = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
        write_json(
            root / f"v2_OpenEnded_mscoco_{split}_questions.json",
            {**meta, "data_subtype": split, "questions": questions},
        )
        for image in (9, 25):
            write_picture(root / folder / f"COCO_{folder}_{image:012d}.jpg", image)
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": given[0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(given, start=1)
            ],
            "image_id": image,
            "answer_type": kind,
            "question_id": image * 1000 + number,
        }
        for number, ((image, _), given, kind) in enumerate(zip(asked, answers, kinds, strict=True))
    ]
    write_json(root / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": annotations})
    return root


def gqa(root: Path) -> Path:
    records = {
        "201307251": {
            "semantic": [],
            "entailed": [],
            "equivalent": ["201307251"],
            "question": "Is it overcast?",
            "imageId": "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-weather"},
            "answer": "no",
            "semanticStr": "",
            "annotations": {},
            "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
            "fullAnswer": "No, it is clear.",
        },
        "201640614": {
            "question": "Who is there?",
            "imageId": "n235859",
            "answer": "woman",
            "types": {"structural": "query"},
        },
    }
    write_json(root / "testdev_balanced_questions.json", records)
    for seed, record in enumerate(records.values()):
        write_picture(root / "images" / f"{record['imageId']}.jpg", seed)
    return root


def textvqa(root: Path) -> Path:
    data = [
        {
            "question": "what brand is it?",
            "image_id": "003a8ae2ef43b901",
            "image_classes": ["Cassette deck"],
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "image_width": 1024,
            "image_height": 730,
            "answers": ["Nokia's", "nokia 's", *["nokia"] * 8],
            "question_tokens": ["what", "brand", "is", "it"],
            "question_id": 34602,
            "set_name": "val",
        }
    ]
    write_json(
        root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": data}
    )
    write_picture(root / "train_images" / "003a8ae2ef43b901.jpg", 1)
    del data[0]["answers"]
    write_json(root / "TextVQA_0.5.1_test.json", {"data": data})
    write_picture(root / "test_images" / "003a8ae2ef43b901.jpg", 2)
    return root


def pope(root: Path) -> Path:
    for split, other in (("random", "cup"), ("popular", "car"), ("adversarial", "dog")):
        records = [
            {"question_id": 1, "image": VAL.format(7)[8:], "text": "Is there a cat?", "label": "yes"},
            {"question_id": 2, "image": VAL.format(7)[8:], "text": f"Is there a {other}?", "label": "no"},
        ]
        write_lines(root / f"coco_pope_{split}.json", records)
    write_picture(root / VAL.format(7), 7)
    return root


def mme(root: Path) -> Path:
    """Every category, one picture each; some in folders of their own, as the official release has them."""
    for number, category in enumerate((*PERCEPTION, *COGNITION)):
        texts = pictures = root / category
        if category in ("artwork", "celebrity", "landmark", "posters", "scene"):
            texts, pictures = root / category / "questions_answers_YN", root / category / "images"
        texts.mkdir(parents=True)
        lines = "Is it one? Please answer yes or no.\tYes\nIs it two? Please answer yes or no.\tNo\n"
        (texts / "0001.txt").write_text(lines)
        png = category == "code_reasoning"
        write_picture(pictures / ("0001.png" if png else "0001.jpg"), number, "PNG" if png else "JPEG")
    return root


def seed_bench(root: Path) -> Path:
    choices = {"choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four"}
    questions = [
        {
            "answer": "B",
            **choices,
            "data_id": "1454426_2591111986",
            "data_type": "image",
            "question": "How many towers?",
            "question_id": "101669",
            "question_type_id": 5,
        },
        {
            "answer": "D",
            **choices,
            "data_id": "1454426_2591111986",
            "data_type": "image",
            "question": "What is it?",
            "question_id": "101670",
            "question_type_id": 1,
        },
        {
            "answer": "A",
            **choices,
            "data_id": "P01/P01_01",
            "data_type": "video",
            "question": "What happens?",
            "question_id": "v0",
            "question_type_id": 10,
            "segment": [0, 1],
        },
    ]
    types = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    write_json(root / "SEED-Bench.json", {"questions": questions, "question_type": types})
    write_picture(root / "SEED-Bench-image" / "1454426_2591111986", 3)
    return root


def captions(root: Path) -> Path:
    images = [{"id": 42, "file_name": VAL.format(42)[8:], "width": 40, "height": 30}]
    annotations = [
        {"image_id": 42, "id": number, "caption": text}
        for number, text in enumerate(["A dog runs.", "A brown dog is running on the grass."])
    ]
    write_json(root / "annotations/captions_val2014.json", {"images": images, "annotations": annotations})
    write_picture(root / VAL.format(42), 42)
    return root


def geneval(root: Path) -> Path:
    records = [
        {
            "tag": "single_object",
            "include": [{"class": "bench", "count": 1}],
            "prompt": "a photo of a bench",
        },
        {
            "tag": "counting",
            "include": [{"class": "cup", "count": 2}],
            "exclude": [{"class": "cup", "count": 3}],
            "prompt": "a photo of two cups",
        },
        {
            "tag": "position",
            "include": [
                {"class": "dog", "count": 1},
                {"class": "tie", "count": 1, "position": ["right of", 0]},
            ],
            "prompt": "a photo of a tie right of a dog",
        },
    ]
    write_lines(root / "evaluation_metadata.jsonl", records)
    return root


def mjhq(root: Path) -> Path:
    records = {
        f"{number:016x}": {"category": category, "prompt": f"a {colour} thing"}
        for number, (category, colour) in enumerate(
            [("animals", "red"), ("art", "blue"), ("art", "green"), ("people", "grey")]
        )
    }
    write_json(root / "meta_data.json", records)
    for seed, (id_, record) in enumerate(records.items()):
        write_picture(root / "mjhq30k_imgs" / record["category"] / f"{id_}.jpg", seed)
    return root
