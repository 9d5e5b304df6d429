"""What has to be set before any library is imported."""

from __future__ import annotations

import os

# As the command line does: bars of the hub's client must not mix with what a command says.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# transformers logs to the stream that was stderr when it was imported, which pytest has closed by then.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
