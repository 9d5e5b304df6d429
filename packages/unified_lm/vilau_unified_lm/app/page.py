"""The page: a chat about pictures and videos, and a canvas that shows the picture as it is drawn. Needs Gradio."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vilau_common.data.conversation import USER
from vilau_common.errors import UserError
from vilau_common.report.pictures import LARGEST_PIXELATED_SIDE
from vilau_unified_lm.app.studio import Message, Studio
from vilau_unified_lm.evaluation.language import MAX_TOKENS
from vilau_unified_lm.evaluation.run import SamplingConfig
from vilau_unified_lm.generation.sampling import Sampling

MOST_PICTURES = 8
MOST_FRAMES = 32
FRAMES = 8  # VILA-U's
MOST_TOKENS = 1024
MOST_GUIDANCE, MOST_TEMPERATURE = 10.0, 2.0
SEEDS = 2**31
CANVAS = "canvas"
# System fonts: a page on a cluster must not wait for one from the web.
FONTS = ("system-ui", "sans-serif")
CSS = f"#{CANVAS} img {{ image-rendering: %s; }}"


def page(studio: Studio, name: str, sampling: SamplingConfig, together: bool) -> gr.Blocks:
    """The page of a model.

    name: of the run. sampling: what the controls begin with. together: whether a chat begins as one conversation.
    """
    with gr.Blocks(title=f"VILA-U: {name}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {name}\nOne model that reads pictures and draws them.")
        with gr.Tab("Chat"):
            _chat(studio, together)
        with gr.Tab("Draw"):
            _draw(studio, sampling)
    return blocks


def style(studio: Studio) -> dict[str, Any]:
    """What `launch` is told of the page's looks: the pixels of small pictures are shown as squares."""
    small = studio.session.image_tokenizer.image_size <= LARGEST_PIXELATED_SIDE
    return {
        "css": CSS % ("pixelated" if small else "auto"),
        "theme": gr.themes.Default(font=FONTS, font_mono=FONTS),
    }


# --- chat --------------------------------------------------------------------------------------------------------


def _chat(studio: Studio, together: bool) -> None:
    def answer(
        message: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        whole: bool,
        frames: float,
        max_tokens: float,
    ) -> Iterator[str]:
        """Answers a message about the pictures and videos in it, or in an earlier one."""
        new = Message(USER, message["text"], tuple(Path(file) for file in message["files"]))
        with told():
            yield from studio.reply(
                [*messages(history), new], max_tokens=int(max_tokens), frames=int(frames), together=whole
            )

    gr.ChatInterface(
        answer,
        multimodal=True,
        textbox=gr.MultimodalTextbox(
            placeholder="Add a picture or a video and ask about it",
            file_types=["image", "video"],
            file_count="multiple",
        ),
        additional_inputs=[
            gr.Checkbox(
                together,
                label="One conversation",
                info="Earlier messages count. Off: each question stands alone, about the newest pictures",
            ),
            gr.Slider(1, MOST_FRAMES, FRAMES, step=1, label="Frames", info="Taken of a video, evenly spread"),
            gr.Slider(1, MOST_TOKENS, MAX_TOKENS, step=1, label="Longest answer", info="In tokens"),
        ],
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        api_name="chat",
    )


def messages(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Gradio's history, messages of parts, as messages; what one side says in a row is one."""
    found: list[Message] = []
    for entry in history:
        texts, files = [], []
        for part in entry["content"]:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                files.append(Path(part["file"]["path"]))
        if found and found[-1].role == entry["role"]:
            last = found.pop()
            texts, files = [last.text, *texts], [*last.files, *files]
        found.append(Message(entry["role"], "\n".join(text for text in texts if text), tuple(files)))
    return found


# --- canvas ------------------------------------------------------------------------------------------------------


def _draw(studio: Studio, sampling: SamplingConfig) -> None:
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
    ) -> Iterator[tuple[list[tuple[Image.Image, str]], int]]:
        """Draws pictures of a prompt; gives them as far as they are drawn, and the seed of the first."""
        first = secrets.randbelow(SEEDS) if fresh else int(seed or 0)
        with told():
            chosen = Sampling(
                temperature=temperature,
                top_k=None if top_k is None else int(top_k),
                top_p=top_p,
                guidance=guidance,
            )
            for drawn in studio.draw(prompt, chosen, negative=negative, seed=first, count=int(count)):
                yield (
                    [
                        (Image.fromarray(picture), f"seed {first + index}")
                        for index, picture in enumerate(drawn.pictures)
                    ],
                    first,
                )

    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", placeholder="What to draw", lines=2, submit_btn=False)
            negative = gr.Textbox(
                label="Negative prompt", placeholder="What guidance leads away from; blank by itself"
            )
            with gr.Row():
                start = gr.Button("Draw", variant="primary")
                stop = gr.Button("Stop")
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
                top_k = gr.Number(
                    sampling.top_k, precision=0, label="Top-k", info="Likeliest codes; empty: all"
                )
                top_p = gr.Slider(
                    0.05, 1, sampling.top_p, step=0.01, label="Top-p", info="Their total probability"
                )
            with gr.Row():
                seed = gr.Number(
                    0, precision=0, minimum=0, label="Seed", info="The same seed, the same picture"
                )
                count = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures", info="Seed, seed + 1, …")
            fresh = gr.Checkbox(False, label="A new seed each time")
        with gr.Column():
            canvas = gr.Gallery(
                label="Picture",
                elem_id=CANVAS,
                format="png",
                columns=2,
                object_fit="contain",
                interactive=False,
            )
    drawing = gr.on(
        [start.click, prompt.submit],
        draw,
        [prompt, negative, guidance, temperature, top_k, top_p, seed, fresh, count],
        [canvas, seed],
        api_name="draw",
        show_progress="hidden",  # it would cover what is drawn
    )
    stop.click(None, cancels=[drawing])


@contextmanager
def told() -> Iterator[None]:
    """A user's mistake is shown in its one sentence; everything else is a defect of ours."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
