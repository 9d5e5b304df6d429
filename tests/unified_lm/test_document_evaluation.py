"""Evaluation of videos, edits, shots and stories: what true and false results count, and a tiny random model's."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_lm import IMAGE_SIZE, lm_config, make_tower

from vilau_common.data.conversation import without_placeholders
from vilau_common.data.encoder import BadSample
from vilau_common.data.prepare_documents import prepare_documents
from vilau_common.data.split import load_documents
from vilau_common.data.text_tokenizer import train_text_tokenizer
from vilau_common.data.worlds.scene import WorldDocument
from vilau_common.data.worlds.scenes.config import ScenesConfig
from vilau_common.data.worlds.scenes.motion import Motion, motion_caption
from vilau_common.data.worlds.scenes.world import ScenesWorld
from vilau_unified_lm.build import build_lm
from vilau_unified_lm.document import Document, ImageSegment, TextSegment
from vilau_unified_lm.evaluation import shots, videos
from vilau_unified_lm.evaluation.documents import evaluate_documents
from vilau_unified_lm.evaluation.edits import evaluate_edits
from vilau_unified_lm.evaluation.examples import ExampleWriter
from vilau_unified_lm.evaluation.stories import evaluate_stories
from vilau_unified_lm.forms import DocumentForms
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.session import Session
from vilau_unified_lm.vocabulary import Vocabulary, add_special_tokens

SAMPLING = Sampling(temperature=1.0, top_k=None, top_p=1.0, guidance=2.0)
COUNT = 6
KINDS = ("videos", "edits", "shots", "stories")


@dataclass
class Prepared:
    """A tiny world's documents on disk, and a random model that can read them."""

    directory: Path
    world: ScenesWorld
    session: Session

    def documents(self, kind: str, split: str = "test") -> list[WorldDocument]:
        return load_documents(self.directory / kind / split, None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    directory = tmp_path_factory.mktemp("documents")
    config = ScenesConfig(
        image_size=IMAGE_SIZE,
        video_count=COUNT,
        edit_count=COUNT,
        shots_count=COUNT,
        story_count=COUNT,
        document_test_count=COUNT,
    )
    world = ScenesWorld(config)
    calls: list[tuple[str, int]] = []
    prepare_documents(
        world, config, directory, samples_per_shard=4, progress=lambda *call: calls.append(call)
    )
    assert ("videos/train", COUNT) in calls and len(calls) == 12
    texts = []
    for kind in KINDS:
        for document in load_documents(directory / kind / "train", None):
            record = document.record
            said = [turn["text"] for turn in record.get("conversation", [])]
            said += [record[name] for name in ("interleaved", "instruction") if name in record]
            texts += [*record.get("captions", []), *map(without_placeholders, said)]
    tokenizer = train_text_tokenizer(texts, directory / "tokenizer", vocabulary_size=500)
    add_special_tokens(tokenizer)
    tower = make_tower()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, tower.codebook_size, tower.depth)
    sizes = lm_config()
    backbone = replace(sizes.backbone, context=256)  # type: ignore[type-var]
    model = build_lm(replace(sizes, backbone=backbone), tower, vocabulary).eval()
    return Prepared(directory, world, Session(model, tokenizer))


def test_what_stands_there_is_not_written_again(prepared: Prepared, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    written = prepare_documents(
        prepared.world,
        prepared.world.config,
        prepared.directory,
        samples_per_shard=4,
        progress=lambda *call: calls.append(call),
    )
    assert not calls and len(written) == 12
    prepare_documents(
        prepared.world, prepared.world.config, tmp_path, samples_per_shard=4, progress=lambda *call: None
    )
    for name, path in written.items():
        for file in path.glob("*.tar"):
            assert file.read_bytes() == (tmp_path / name / file.name).read_bytes()


# --- losses -----------------------------------------------------------------------------------------------------


def trained(document: Document) -> list[str]:
    """The document's parts, "text", "TEXT", "image", "IMAGE": capitals are supervised; like neighbours count once."""
    kinds = [
        ("text" if isinstance(segment, TextSegment) else "image", segment.supervised)
        for segment in document.segments
    ]
    return [kind.upper() if supervised else kind for (kind, supervised), _ in groupby(kinds)]


@pytest.mark.parametrize(
    ("kind", "form", "expected"),
    [
        ("videos", "text_to_video", ["text", "IMAGE", "TEXT"]),
        ("videos", "conversation", ["text", "image", "text", "TEXT"]),
        ("videos", "video_to_text", ["text", "image", "text", "TEXT"]),
        ("edits", "edit", ["text", "image", "text", "IMAGE", "TEXT"]),
        ("shots", "conversation", ["text", "image", "text", "TEXT"] * 5),
        ("stories", "interleaved", ["text", *(["TEXT", "IMAGE"] * 3), "TEXT"]),
    ],
)
def test_losses_are_on_what_the_model_is_to_say_or_draw(
    prepared: Prepared, kind: str, form: str, expected: list[str]
) -> None:
    builder = prepared.session.builder
    forms = DocumentForms(
        builder,
        blank_share=0.0,
        questions_per_document=8,
        independent_questions=True,
        interleaved_image_loss=True,
    )
    for document in prepared.documents(kind, "train"):
        made = forms.document(stored(prepared.session, document), form, np.random.default_rng(0))
        assert trained(made) == expected
        said = [
            builder.tokenizer.decode(s.ids, skip_special_tokens=True).strip()
            for s in made.segments
            if isinstance(s, TextSegment) and s.supervised
        ]
        record = document.record
        if form == "conversation":
            assert [text for text in said if text] == [turn["text"] for turn in record["conversation"][1::2]]
        if form == "interleaved":
            texts = [text.strip() for text in record["interleaved"].split("<image>")]
            assert [text for text in said if text] == texts[:-1]


def stored(session: Session, document: WorldDocument) -> dict[str, bytes]:
    """The fields of a code shard's sample."""
    file = io.BytesIO()
    np.save(file, session.encode(document.images)[:, None].astype(np.uint16))
    return {"codes.npy": file.getvalue(), "json": json.dumps(document.record).encode()}


def test_a_video_without_its_frames_is_a_bad_sample(prepared: Prepared) -> None:
    document = prepared.documents("videos", "train")[0]
    forms = DocumentForms(
        prepared.session.builder,
        blank_share=0.0,
        questions_per_document=8,
        independent_questions=True,
        interleaved_image_loss=True,
    )
    short = WorldDocument(document.key, document.images[:2], document.record)
    with pytest.raises(BadSample, match="2 pictures, but its record tells of 3"):
        forms.document(stored(prepared.session, short), "text_to_video", np.random.default_rng(0))


# --- judging ----------------------------------------------------------------------------------------------------


def test_true_videos_and_answers_are_right(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, session = prepared.documents("videos"), prepared.session
    motions = [Motion.from_json(document.record["motion"]) for document in documents]

    def told(session: Session, prompts: list[Document], stage: str) -> list[str]:
        if stage == "video descriptions":
            return [motion_caption(motion) for motion in motions]
        return [document.record["conversation"][1]["text"] for document in documents]

    monkeypatch.setattr(videos, "answers", told)
    monkeypatch.setattr(session, "film", lambda *_: np.stack([d.images for d in documents]))
    numbers, strips = videos.evaluate_videos(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers == dict.fromkeys(numbers, 1.0) and len(numbers) == 7
    assert len(strips) == 2 * COUNT and all(strip.right for strip in strips)

    # Every video backwards: the objects are right, unless the caption tells where they began, the directions are not.
    monkeypatch.setattr(session, "film", lambda *_: np.stack([d.images[::-1] for d in documents]))
    monkeypatch.setattr(videos, "answers", lambda *_: ["a red circle"] * COUNT)
    numbers, _ = videos.evaluate_videos(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers["lm/draw_video_direction_accuracy"] == 0
    assert numbers["lm/draw_video_object_accuracy"] == 0.5  # partial captions are every second one
    assert numbers["lm/video_question_object_accuracy"] == 0  # no sentence about a video


def test_an_edit_that_changes_nothing_keeps_everything(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, session = prepared.documents("edits"), prepared.session
    for number, changed in ((1, 1.0), (0, 0.0)):
        pictures = np.stack([document.images[number] for document in documents])
        monkeypatch.setattr(session, "decode", lambda codes, pictures=pictures: pictures)
        numbers, strips = evaluate_edits(session, prepared.world, documents, SAMPLING, seed=0)
        assert numbers["lm/edit_accuracy"] == numbers["lm/edit_changed_accuracy"] == changed
        assert numbers["lm/edit_kept_accuracy"] == 1.0
        kinds = {document.record["edit"]["kind"] for document in documents}
        assert {name for name in numbers if "/edit_accuracy/" in name} == {
            f"lm/edit_accuracy/{kind}" for kind in kinds
        }
        assert [strip.right for strip in strips] == [bool(changed)] * COUNT


def test_shots_are_the_first_ones_and_the_question_is_the_same(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, session = prepared.documents("shots"), prepared.session
    last = session.encode(np.stack([document.images[-1] for document in documents]))
    asked: dict[str, list[Document]] = {}

    def told(session: Session, prompts: list[Document], stage: str) -> list[str]:
        asked[stage] = prompts
        names = [document.record["conversation"][-1]["text"] for document in documents]
        return names if stage == "4 shots" else ["?"] * COUNT

    monkeypatch.setattr(shots, "answers", told)
    numbers, strips = shots.evaluate_shots(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers == {"lm/shots_0_accuracy": 0.0, "lm/shots_2_accuracy": 0.0, "lm/shots_4_accuracy": 1.0}
    for count in (0, 2, 4):
        for prompt, codes in zip(asked[f"{count} shots"], last, strict=True):
            images = [segment for segment in prompt.segments if isinstance(segment, ImageSegment)]
            assert len(images) == count + 1
            assert np.array_equal(images[-1].codes, codes.reshape(images[-1].codes.shape))
    assert {len(strip.pictures) for strip in strips} == {1, 3, 5}


def test_stories_are_right_as_far_as_pictures_show_what_texts_tell(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, session = prepared.documents("stories"), prepared.session
    true = []
    for document in documents:
        _, *texts = [text.strip() for text in document.record["interleaved"].split("<image>")][:-1]
        first, *others = document.images
        true.append([first, *(part for pair in zip(texts, others, strict=True) for part in pair)])
    monkeypatch.setattr(session, "generate", lambda *_, **__: true)
    numbers, strips = evaluate_stories(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers == {"lm/story_picture_accuracy": 1.0, "lm/story_text_accuracy": 1.0}
    assert all(strip.right and len(strip.pictures) == 3 for strip in strips)
    # The second picture is the first one again, and the third text is no instruction.
    false = [[parts[0], parts[1], parts[0], "and then", parts[4]] for parts in true]
    monkeypatch.setattr(session, "generate", lambda *_, **__: false)
    numbers, _ = evaluate_stories(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers == {
        "lm/story_picture_accuracy": pytest.approx(1 / 3),
        "lm/story_text_accuracy": 0.5,
    }
    # Text where a picture should be, and a video.
    film = np.stack([true[0][0]] * 2)
    monkeypatch.setattr(session, "generate", lambda *_, **__: [["and", true[0][0]], [film]] * (COUNT // 2))
    numbers, strips = evaluate_stories(session, prepared.world, documents, SAMPLING, seed=0)
    assert numbers == {"lm/story_picture_accuracy": 0.0}
    assert not any(strip.pictures for strip in strips)


# --- end to end -------------------------------------------------------------------------------------------------


def test_a_random_model_is_evaluated_twice_the_same(prepared: Prepared, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        examples = ExampleWriter(directory, 8)
        for prefix, split in (("", "test"), ("held_out/", "test_held_out")):
            results.append(
                evaluate_documents(
                    prepared.session,
                    prepared.world,
                    prepared.directory,
                    split,
                    prefix=prefix,
                    limit=4,
                    sampling=SAMPLING,
                    seed=3,
                    examples=examples,
                )
            )
        examples.finish()
    assert results[:2] == results[2:]
    for prefix, numbers in zip(("", "held_out/"), results, strict=False):
        assert all(name.startswith(prefix) for name in numbers)
        assert numbers[f"{prefix}verifier/video_accuracy"] == 1.0
        for name in ("draw_video_object", "draw_video_direction", "video_question_object", "edit"):
            assert numbers[f"{prefix}lm/{name}_accuracy"] < 0.5
    listed = json.loads((tmp_path / "0" / "examples.json").read_text())
    assert {kind: len(listed[kind]) for kind in KINDS} == {
        "videos": 2 * 8,
        "edits": len(listed["edits"]),
        "shots": len(listed["shots"]),
        "stories": 2 * 4,
    }
    films = list((tmp_path / "0" / "pictures").glob("*.gif"))
    assert len(films) == 2 * 4
    for film in films:
        with Image.open(film) as moving:
            assert getattr(moving, "n_frames", 1) == 3
        assert film.with_suffix(".mp4").stat().st_size > 0
