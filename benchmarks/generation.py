"""Seconds per visual position of drawing, against slower ways to the same picture and against its floor.

    make bench BENCH=generation                                   the demo's model, batches of 1, 16 and 32
    make bench BENCH=generation ARGS="--size 200m"                a model of 200M parameters
    make bench BENCH=generation ARGS="--size 1b --depth 16"       on a GPU: op by op and as captured graphs

References, same weights, one prompt a call:
  rerun     the LM cached, the depth transformer's whole prefix again for each of the D codes, as VILA-U's code does it
  uncached  so, and the LM's whole prefix again for each position
Floor of a step: the larger of (weights: the LM's once, the depth transformer's D times, over the measured bandwidth of
a copy) and (their products, over the measured rate of a large one). All with guidance: two rows of the LM a picture.
Closes with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig

from vilau_unified_lm.config import DepthConfig, UnifiedLMConfig
from vilau_unified_lm.document import Document, TextSegment
from vilau_unified_lm.generation.engine import Engine
from vilau_unified_lm.generation.sampling import Sampling, guided, sample, uniform_draws
from vilau_unified_lm.model import UnifiedLM
from vilau_vision_tower.config import VisionTowerConfig

PROMPT, BLANK = 12, 2  # tokens
MARK = 3  # the id that stands for <image_start>
SAMPLING = Sampling(temperature=0.7, top_k=None, top_p=0.9, guidance=2.0)
BATCHES = (1, 16, 32)
PRODUCT, COPIED = 2048, 2**26  # side of the large product, numbers in the copy


@dataclass(kw_only=True)
class Size:
    """A model: backbone, depth transformer, and the tower's codes."""

    width: int
    layers: int
    mlp_width: int
    depth: DepthConfig
    side: int  # positions of a picture's side
    codebook_size: int
    code_dim: int
    codes: int = 4  # D
    vocabulary: int = 512


SIZES = {
    "demo": Size(
        width=128,
        layers=4,
        mlp_width=384,
        depth=DepthConfig(width=128, layers=2, heads=4),
        side=3,
        codebook_size=256,
        code_dim=32,
        codes=2,
    ),
    "200m": Size(
        width=1024,
        layers=12,
        mlp_width=2752,
        depth=DepthConfig(width=1024, layers=3, heads=16),
        side=4,
        codebook_size=4096,
        code_dim=256,
        vocabulary=8192,
    ),
    "1b": Size(
        width=2048,
        layers=20,
        mlp_width=5504,
        depth=DepthConfig(width=1024, layers=6, heads=16),
        side=16,
        codebook_size=16384,
        code_dim=1024,
        vocabulary=32000,
    ),
}


def build(size: Size) -> UnifiedLM:
    """A model of random weights."""
    text = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 16 if size.width < 1024 else size.width // 64,
        max_position_embeddings=1024,
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 6 * size.side,
        "patch_size": 6,
    }
    tower = VisionTowerConfig(
        vision_config=vision,
        quantizer={"codebook_size": size.codebook_size, "depth": size.codes, "code_dim": size.code_dim},
        decoder={"kind": "transformer", "width": 64, "layers": 1, "heads": 4},
    )
    model = UnifiedLM(
        UnifiedLMConfig(
            text_config=text.to_dict(),
            vision_config=tower.to_dict(),
            depth=asdict(size.depth),
            grid_positions=True,
        )
    )
    model.vision_tower.quantizer.codebooks.normal_()
    return model.eval()


# --- references --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def draw_alone(
    model: UnifiedLM, prompt: Tensor, blank: Tensor, seed: int, positions: int, cached: bool
) -> Tensor:
    """Codes int64 [positions, D] of one picture. prompt, blank: int64 [1, L], [1, l]; cached: the LM's prefix."""
    tower = model.image_tokenizer
    uniform = uniform_draws([seed], positions * tower.depth, prompt.device).view(positions, 1, tower.depth)
    embed = model.llm.get_input_embeddings()
    inputs = [embed(prompt), embed(blank)]
    caches = [DynamicCache(config=model.llm.config) for _ in inputs]
    drawn = []
    for place in range(positions):
        hidden = []
        for which, given in enumerate(inputs):
            read = given[:, -1:] if cached and place else given
            cache = caches[which] if cached else None
            output = model.llm.get_decoder()(inputs_embeds=read, past_key_values=cache, use_cache=cached)
            hidden.append(output.last_hidden_state[:, -1])
        codes = torch.zeros(1, tower.depth, dtype=torch.long, device=prompt.device)
        states = torch.cat(hidden)
        for level in range(tower.depth):
            logits = prefix_logits(model, states, codes, level)
            codes[:, level] = sample(guided(logits, SAMPLING.guidance), uniform[place, :, level], SAMPLING)
        drawn.append(codes)
        index = torch.full((1,), place, device=prompt.device)
        features = tower.embed_codes(codes).sum(dim=-2).to(states.dtype)
        read = model.projector(features, index).unsqueeze(1)
        inputs = [torch.cat([given, read], dim=1) for given in inputs]
    return torch.cat(drawn)


def prefix_logits(model: UnifiedLM, states: Tensor, codes: Tensor, level: int) -> Tensor:
    """Logits float [2, K] of one depth, everything before it anew. states: float [2, hidden]; codes: int64 [1, D]."""
    depth = model.depth
    # VILA-U's code embeds all D codes each time, the missing ones, too.
    embeddings = model.image_tokenizer.embed_codes(codes)[:, :level].to(states.dtype)
    features = depth.from_features(embeddings.cumsum(dim=1)).expand(len(states), -1, -1)
    x = torch.cat([depth.from_hidden(states).unsqueeze(1), features], dim=1) + depth.positions[: level + 1]
    for block in depth.blocks:
        x = block(x)
    return depth.head(depth.norm(x[:, -1]))


# --- measuring ---------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def weights(*modules: nn.Module) -> int:
    """Numbers in the matrices that a step multiplies by."""
    return sum(
        part.weight.numel() for module in modules for part in module.modules() if isinstance(part, nn.Linear)
    )


@dataclass
class Machine:
    """What the machine can do in this precision, measured beside everything else."""

    bytes_per_second: float
    products_per_second: float  # multiply-adds

    @classmethod
    def measured(cls, like: Tensor) -> Machine:
        side, source = like.new_ones(PRODUCT, PRODUCT), like.new_ones(COPIED)
        target = torch.empty_like(source)
        copy = seconds(lambda: target.copy_(source), like.device)
        product = seconds(lambda: side @ side, like.device)
        return cls(2 * source.numel() * source.element_size() / copy, PRODUCT**3 / product)

    def floor(self, model: UnifiedLM, pictures: int) -> float:
        """Seconds of one visual position of all pictures."""
        lm, depth = weights(model.llm.get_decoder()), weights(model.depth) * model.image_tokenizer.depth
        read = (lm + depth) * model.depth.head.weight.element_size() / self.bytes_per_second
        return max(read, 2 * pictures * (lm + depth) / self.products_per_second)


def main() -> None:
    """Measure by turns, so that a noisy machine disturbs all alike, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--depth", type=int, help="D, codes of a position")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    size.codes = arguments.depth or size.codes
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    model = build(size).to(device, torch.bfloat16 if cuda else torch.float32)
    positions = size.side**2
    count = max(BATCHES)
    # Both end at the mark that begins a picture, as the engine makes of any negative prompt.
    prompts = [(*torch.randint(10, size.vocabulary, (PROMPT - 1,)).tolist(), MARK) for _ in range(count)]
    documents = [Document((TextSegment(ids, supervised=False),)) for ids in prompts]
    blank = (1, MARK)
    away = Document((TextSegment(blank, supervised=False),))
    engines = {mode: Engine(model, mode) for mode in (("none", "graph") if cuda else ("none",))}

    def alone(cached: bool) -> Tensor:
        ids = [torch.tensor([given], device=device) for given in (prompts[0], blank)]
        return draw_alone(model, ids[0], ids[1], 0, positions, cached)

    runs: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "uncached": (1, lambda: alone(cached=False)),
        "rerun": (1, lambda: alone(cached=True)),
    }
    for mode, engine in engines.items():
        for pictures in BATCHES:

            def ours(engine: Engine = engine, pictures: int = pictures) -> Tensor:
                return engine.draw(documents[:pictures], away, SAMPLING, range(pictures))

            runs[f"engine, compile={mode}, {pictures}"] = (pictures, ours)
    first = {name: run().flatten(0, -2)[:positions] for name, (_, run) in runs.items()}  # warms up, too
    same = {name: float((codes == first["rerun"]).float().mean()) for name, codes in first.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    floors: dict[str, list[float]] = {name: [] for name in runs}
    Machine.measured(model.depth.head.weight)
    for _ in range(arguments.rounds):
        for name, (pictures, run) in runs.items():
            times[name].append(seconds(run, device) / positions)
            floors[name].append(Machine.measured(model.depth.head.weight).floor(model, pictures))
    parameters = sum(
        p.numel() for part in (model.llm, model.projector, model.depth) for p in part.parameters()
    )
    print(
        f"{arguments.size}: {parameters / 1e6:.1f}M parameters, D = {size.codes}, {positions} positions a picture"
    )
    results = {}
    reference = statistics.median(times["rerun"])
    for name, (pictures, _) in runs.items():
        taken, floor = statistics.median(times[name]), statistics.median(floors[name])
        # Of so many pictures, the reference draws one after the other.
        results[name] = {
            "seconds_per_position": taken,
            "floor": floor,
            "share_of_floor": floor / taken,
            "times_rerun": reference * pictures / taken,
            "codes_as_rerun": same[name],
        }
        print(
            f"{name:28} {taken * 1e3:8.2f} ms a position ({taken / pictures * 1e3:7.2f} a picture), floor "
            f"{floor * 1e3:8.2f} ms; {reference * pictures / taken:5.1f} times as fast as rerun"
        )
    print(
        json.dumps(
            {"device": str(device), "threads": torch.get_num_threads(), "size": arguments.size, **results}
        )
    )


if __name__ == "__main__":
    main()
