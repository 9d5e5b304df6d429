"""Our code against the official one on a checkpoint with recorded outputs (tests/assets/parity/README.md).

    python tests/unified_lm/official_parity.py CASE...      prints a Markdown table of the differences

A difference is relative: the largest absolute one over the largest absolute value recorded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vilau_unified_lm.convert.read import load_official
from vilau_unified_lm.document import Document, ImageSegment, Segment, TextSegment, image
from vilau_unified_lm.generation.engine import GREEDY
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.losses import StepTargets, unified_loss
from vilau_unified_lm.model import UnifiedLM
from vilau_unified_lm.packing import IGNORE, MixedSequence, pack
from vilau_unified_lm.session import Session

IMAGE = -200  # stands for an image in the recorded ids
PIXEL = 1 / 255


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def document(ids: list[int], labels: list[int], codes: np.ndarray) -> Document:
    """Recorded ids and labels as segments; an image is supervised where the mark before it is."""
    segments: list[Segment] = []
    for place, (id_, label) in enumerate(zip(ids, labels, strict=True)):
        if id_ == IMAGE:
            segments.append(image(codes, supervised=place > 0 and labels[place - 1] >= 0))
        else:
            segments.append(TextSegment((id_,), supervised=label != IGNORE))
    return Document(tuple(segments))


def recorded_form(document: Document) -> list[int]:
    """A document as the recorded ids write it."""
    return [
        id_
        for segment in document.segments
        for id_ in ((IMAGE,) if isinstance(segment, ImageSegment) else segment.ids)
    ]


def text_logits(model: UnifiedLM, batch: MixedSequence) -> Tensor:
    """At every place, float [B, L, V]."""
    return model.text_logits(model.hidden_states(batch)[0])


def loss(model: UnifiedLM, batch: MixedSequence) -> Tensor:
    targets = StepTargets.of([batch], batch.token_ids.device)
    return unified_loss(model(batch), targets, "modality").total


@torch.inference_mode()
def measure(case: Path, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Quantities by name: a relative difference, or for what must be equal the share of places that are not."""
    model, tokenizer = load_official(case, dtype=dtype)
    session, tower = Session(model, tokenizer), model.vision_tower
    builder, engine, depth = session.builder, session.engine, tower.depth
    golden, told = load_file(case / "golden.safetensors"), json.loads((case / "golden.json").read_text())
    found: dict[str, float] = {}

    def unequal(name: str, ours: Tensor | list[int], theirs: Tensor) -> None:
        ours, theirs = torch.as_tensor(ours).flatten(), theirs.flatten()
        found[name] = 1.0 if ours.shape != theirs.shape else float((ours != theirs).float().mean())

    # The tower.
    quantized = tower.quantize(golden["images"])
    unequal("codes", quantized.codes, golden["codes"])
    found["features z_q"] = relative(tower.embed_codes(golden["codes"]).sum(dim=-2), golden["z_q"])
    pixels = tower.decoder(golden["z_q"].permute(0, 3, 1, 2))
    found["reconstruction"] = relative(pixels, golden["reconstruction"])
    index = torch.zeros(golden["z_q"][..., 0].numel(), dtype=torch.long)
    projected = model.projector(golden["z_q"].flatten(0, 2), index)
    found["projected features"] = relative(
        projected.view_as(golden["projected_features"]), golden["projected_features"]
    )

    # The depth transformer.
    embeddings = tower.embed_codes(golden["depth_codes"]).flatten(0, 1)
    logits = model.depth.logits(model.depth(golden["depth_hidden"].flatten(0, 1).to(dtype), embeddings))
    found["depth logits"] = relative(logits, golden["depth_logits"].flatten(0, 1))

    # Understanding, prompt included.
    codes = golden["codes"][0].numpy()
    prompt = builder.question_prompt(codes, told["understanding_prompt"])
    unequal("question prompt", recorded_form(prompt), golden["understanding_input_ids"])
    ids = golden["understanding_input_ids"][0].tolist()
    recorded = document(ids, [IGNORE] * len(ids), codes)
    logits = text_logits(model, pack([[recorded]], len(recorded), depth))
    found["LM logits"] = relative(logits, golden["understanding_logits"])
    greedy = golden["understanding_greedy_ids"][0]
    greedy = greedy[int(greedy[0] == builder.vocabulary.begin) :]
    end = builder.vocabulary.end
    (answer,) = engine.write([prompt], end, len(greedy), GREEDY, [0])
    unequal("greedy answer", (answer + [end] * len(greedy))[: len(greedy)], greedy)

    # Training.
    for form, name in (("t2i", "text to image"), ("i2t", "image to text")):
        sample = document(
            golden[f"train_{form}_ids"].tolist(), golden[f"train_{form}_labels"][0].tolist(), codes
        )
        batch = pack([[sample]], len(sample), depth)
        found[f"{name}, loss"] = relative(loss(model, batch), golden[f"train_{form}_loss"])
        found[f"{name}, LM logits"] = relative(text_logits(model, batch), golden[f"train_{form}_logits"])

    # Drawing and filming, prompts included.
    for kind, form in (("generation", builder.drawing_prompt), ("video", builder.filming_prompt)):
        prompts = [form(told[f"{kind}_prompt"]), form("")]
        recorded_ids = golden[f"{kind}_input_ids"]
        padded = [[0] * (recorded_ids.shape[1] - len(p)) + recorded_form(p) for p in prompts]
        unequal(f"{kind} prompts", padded, recorded_ids)
        positions = golden["codes"][0, ..., 0].numel()
        frames = golden[f"{kind}_codes"].shape[1] // positions
        likeliest = Sampling(temperature=0, top_k=None, top_p=1.0, guidance=told[f"{kind}_cfg"])
        drawn = engine.film(prompts[:1], prompts[1], frames, likeliest, [0])
        unequal(f"{kind} codes", drawn, golden[f"{kind}_codes"])
        if kind == "generation":
            shown = (tower.decode(drawn[:, 0]) + 1) * 127.5
            found["pixels, of 255"] = float((shown - golden["generation_pixels"]).abs().max())
    return found


EQUAL = ("codes", "prompt", "prompts", "answer")  # last words of the quantities that must be equal


def must_be_equal(name: str) -> bool:
    return name.split()[-1] in EQUAL


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each quantity, a column for each case."""
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    for name in next(iter(results.values())):
        cells = []
        for found in results.values():
            value = found[name]
            cells.append(
                ("equal" if value == 0 else f"{value:.1%} differ") if must_be_equal(name) else f"{value:.1e}"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table({Path(case).name: measure(Path(case)) for case in sys.argv[1:]}))
