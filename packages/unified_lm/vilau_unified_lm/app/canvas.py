"""The tabs that draw and edit: pictures are shown as they are drawn."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vilau_common.errors import UserError
from vilau_unified_lm.app.studio import Drawn, Studio
from vilau_unified_lm.evaluation.run import SamplingConfig
from vilau_unified_lm.generation.sampling import Sampling

MOST_PICTURES = 8
MOST_GUIDANCE, MOST_TEMPERATURE = 10.0, 2.0
SEEDS = 2**31
CANVAS = "canvas"  # CSS class
SEED = 4  # its place among the controls

Shown = tuple[list[tuple[Image.Image, str]], int]
"""Pictures with captions, and the seed of the first."""


def draw_tab(studio: Studio, sampling: SamplingConfig) -> None:
    """sampling: what the controls begin with."""

    def draw(
        prompt: str,
        negative: str,
        guidance: float,
        temperature: float,
        top_k: float | None,
        top_p: float,
        seed: float | None,
        fresh: bool,
        count: float,
    ) -> Iterator[Shown]:
        """Draws pictures of a prompt; gives them as far as they are drawn, and the seed of the first."""
        first = _seed(seed, fresh)
        with _told():
            chosen = _sampling(studio, guidance, temperature, top_k, top_p)
            yield from _shown(
                studio.draw(prompt, chosen, negative=negative, seed=first, count=int(count)), first
            )

    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", placeholder="What to draw", lines=1, max_lines=4)
            negative = gr.Textbox(
                label="Negative prompt", placeholder="What guidance leads away from; blank by itself"
            )
            start, stop = _buttons("Draw")
            controls = _controls(studio, sampling)
        canvas = _canvas()
    _wire(draw, [prompt, negative, *controls], canvas, controls[SEED], [start.click, prompt.submit], stop)


def edit_tab(studio: Studio, sampling: SamplingConfig) -> None:
    """sampling: what the controls begin with."""

    def edit(
        picture: str | None,
        instruction: str,
        guidance: float,
        temperature: float,
        top_k: float | None,
        top_p: float,
        seed: float | None,
        fresh: bool,
        count: float,
    ) -> Iterator[Shown]:
        """Changes a picture as the instruction says; gives pictures and seed as /draw does."""
        first = _seed(seed, fresh)
        with _told():
            chosen = _sampling(studio, guidance, temperature, top_k, top_p)
            file = None if picture is None else Path(picture)
            yield from _shown(studio.edit(file, instruction, chosen, seed=first, count=int(count)), first)

    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                type="filepath",
                format="png",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Picture to change",
                height=220,
                elem_classes=CANVAS,
            )
            instruction = gr.Textbox(label="Instruction", placeholder="make the circle blue")
            start, stop = _buttons("Edit")
            controls = _controls(studio, sampling)
        canvas = _canvas()
    _wire(
        edit,
        [picture, instruction, *controls],
        canvas,
        controls[SEED],
        [start.click, instruction.submit],
        stop,
    )


# --- parts -------------------------------------------------------------------------------------------------------


def _buttons(start: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(start, variant="primary"), gr.Button("Stop")


def _controls(studio: Studio, sampling: SamplingConfig) -> list[Any]:
    """In the order of what `draw` and `edit` take."""
    codebook = studio.session.image_tokenizer.codebook_size
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="The same seed, the same picture")
        count = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures", info="Seed, seed + 1, …")
    fresh = gr.Checkbox(False, label="A new seed each time")
    with gr.Row():
        guidance = gr.Slider(
            0, MOST_GUIDANCE, sampling.guidance, step=0.1, label="Guidance", info="1 is none"
        )
        temperature = gr.Slider(
            0,
            MOST_TEMPERATURE,
            sampling.temperature,
            step=0.05,
            label="Temperature",
            info="0: likeliest codes",
        )
    with gr.Row():
        # An empty number would be shown, and sent, as 0.
        top_k = gr.Number(
            min(sampling.top_k or codebook, codebook),
            precision=0,
            label="Top-k",
            info=f"Likeliest codes; {codebook}: all",
        )
        top_p = gr.Slider(0.05, 1, sampling.top_p, step=0.01, label="Top-p", info="Their total probability")
    return [guidance, temperature, top_k, top_p, seed, fresh, count]


def _canvas() -> gr.Gallery:
    with gr.Column():
        return gr.Gallery(
            label="Picture",
            elem_classes=CANVAS,
            format="png",
            columns=2,
            height=480,
            object_fit="contain",
            interactive=False,
        )


def _wire(
    paint: Callable[..., Iterator[Shown]],
    inputs: list[Any],
    canvas: gr.Gallery,
    seed: gr.Number,
    starts: list[Any],
    stop: gr.Button,
) -> None:
    """starts: events that begin. The seed that was taken is shown, so that a picture can be drawn again."""
    painting = gr.on(
        starts,
        paint,
        inputs,
        [canvas, seed],
        api_name=paint.__name__,
        show_progress="hidden",  # it would cover what is drawn
    )
    stop.click(None, cancels=[painting])


def _shown(drawings: Iterable[Drawn], first: int) -> Iterator[Shown]:
    for drawn in drawings:
        pictures = [Image.fromarray(picture) for picture in drawn.pictures]
        yield [(picture, f"seed {first + index}") for index, picture in enumerate(pictures)], first


def _seed(seed: float | None, fresh: bool) -> int:
    return secrets.randbelow(SEEDS) if fresh else int(seed or 0)


def _sampling(
    studio: Studio, guidance: float, temperature: float, top_k: float | None, top_p: float
) -> Sampling:
    """top_k: the whole codebook, or nothing, keeps all codes. Raises UserError for a setting out of range."""
    if top_k is not None and top_k >= studio.session.image_tokenizer.codebook_size:
        top_k = None
    return Sampling(
        temperature=temperature,
        top_k=None if top_k is None else int(top_k),
        top_p=top_p,
        guidance=guidance,
    )


@contextmanager
def _told() -> Iterator[None]:
    """A user's mistake is shown in its one sentence; everything else is a defect of ours."""
    try:
        yield
    except UserError as error:
        # The page takes messages for HTML, and would swallow <image>.
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
