"""Opens a run and serves its page."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vilau_common.errors import UserError
from vilau_unified_lm.app.studio import Studio, remembers
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
    blocks = page(studio, run.resolve().name, evaluated_sampling(run), remembers(lm))
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=LARGEST_UPLOAD,
            show_error=True,
            ssr_mode=False,
            **style(studio),
        )
    except OSError as error:
        raise UserError(f"the page cannot be served at {host}, port {port}: {error}") from None
