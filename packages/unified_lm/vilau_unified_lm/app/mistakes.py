"""Errors on the page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from vilau_common.errors import UserError


@contextmanager
def told() -> Iterator[None]:
    """A user's mistake is shown in its one sentence; everything else is a defect of ours."""
    try:
        yield
    except UserError as error:
        # The page takes messages for HTML, and would swallow <image>.
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
