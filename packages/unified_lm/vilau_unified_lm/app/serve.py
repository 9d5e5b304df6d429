"""Opens a run and serves its page."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import typer

from vilau_common.errors import UserError
from vilau_unified_lm.app.studio import Studio, read_training
from vilau_unified_lm.session import Session
from vilau_unified_lm.use import evaluated_sampling

LARGEST_UPLOAD = "256mb"


def serve(*, run: Path, host: str, port: int | None, device: str, compile: str) -> None:
    """Serve the page of a run until Ctrl-C.

    port: None takes the first free one from 7860 on. Raises UserError without Gradio, for a run that has no LM, and for
    a port that is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page is served by the package gradio, which is not installed: pip install 'vilau-unified-lm[app]'"
        )
    from vilau_unified_lm.app.page import page, style  # Gradio takes seconds

    lm = run / "lm" if (run / "lm").is_dir() else run
    studio = Studio(Session.open(run, device=device, compile=compile))
    training = read_training(lm)
    name = run.resolve().name
    blocks = page(studio, name, evaluated_sampling(run), together=training.remembers, forms=training.forms)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=LARGEST_UPLOAD,
            show_error=True,
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            **style(studio),
        )
    except OSError as error:
        raise UserError(f"the page cannot be served at {host}, port {port}: {error}") from None
    typer.echo(f"{name} is at {address} until Ctrl-C")
    blocks.block_thread()
