"""The app as a person uses it, in Chromium. Needs the extra `app`, selenium, and Debian's chromium and chromium-driver:

uv pip install 'vilau-unified-lm[app]' selenium; apt-get install chromium chromium-driver
python -m pytest tests/unified_lm/test_app_browser.py
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_lm import CAPTIONS, IMAGE_SIZE, QUESTIONS
from transformers import PreTrainedTokenizerFast

from vilau_unified_lm.app.studio import Studio
from vilau_unified_lm.generation.sampling import Sampling
from vilau_unified_lm.vocabulary import Vocabulary

pytest.importorskip("gradio", reason="the app needs gradio: the extra `app` of vilau-unified-lm")
pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)
