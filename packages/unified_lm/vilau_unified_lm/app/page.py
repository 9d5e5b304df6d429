"""The page: a chat, a canvas for drawings and one for edits. Needs Gradio."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gradio as gr

from vilau_common.report.pictures import LARGEST_PIXELATED_SIDE
from vilau_unified_lm.app.canvas import CANVAS, draw_tab, edit_tab
from vilau_unified_lm.app.chat import chat_tab
from vilau_unified_lm.app.studio import Studio
from vilau_unified_lm.evaluation.run import SamplingConfig

EDIT = "edit"
VIDEO_FORMS = ("video_to_text", "conversation")
# System fonts: a page on a cluster must not wait for one from the web.
FONTS = ("system-ui", "sans-serif")
# Sharing sends pictures to a public server.
PRIVATE = "button[aria-label=Share] { display: none !important; }\n"
# Small pictures are shown large, their pixels as squares.
SMALL = f"""
.{CANVAS} img, #chat .message img {{ image-rendering: pixelated; }}
.{CANVAS} img {{ width: 100%; height: 100%; object-fit: contain; }}
#chat .message img {{ width: 8rem; height: 8rem; object-fit: contain; }}
"""
# Seconds: partial pictures and uploads are files of the server's; every so often the older ones are deleted.
CLEANING, KEPT = 600, 3600


def page(
    studio: Studio, name: str, sampling: SamplingConfig, *, together: bool, forms: Collection[str]
) -> gr.Blocks:
    """The page of a model.

    name: of the run. sampling: what the controls begin with. together: whether a chat begins as one conversation.
    forms: of document that it was trained on, to say what it cannot know; empty: nobody knows.
    """
    with gr.Blocks(title=f"VILA-U: {name}", analytics_enabled=False, delete_cache=(CLEANING, KEPT)) as blocks:
        gr.Markdown(f"# {name}\nOne model that reads pictures and draws them.")
        with gr.Tab("Chat", elem_id="chat"):
            if forms and not any(form in forms for form in VIDEO_FORMS):
                gr.Markdown("This run was not trained on videos: what it says about them means little.")
            chat_tab(studio, together)
        with gr.Tab("Draw", elem_id="draw"):
            draw_tab(studio, sampling)
        with gr.Tab("Edit", elem_id="edit"):
            if forms and EDIT not in forms:
                gr.Markdown("This run was not trained on edits: what it draws here means little.")
            edit_tab(studio, sampling)
    return blocks


def style(studio: Studio) -> dict[str, Any]:
    """What `launch` is told of the page's looks."""
    small = studio.session.image_tokenizer.image_size <= LARGEST_PIXELATED_SIDE
    return {
        "css": PRIVATE + (SMALL if small else ""),
        "theme": gr.themes.Default(font=FONTS, font_mono=FONTS),
        "footer_links": ["api"],
    }
