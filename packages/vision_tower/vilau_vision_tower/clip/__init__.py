"""The pretrained CLIP that the tower starts from, from whatever library it comes.

config.py        where a CLIP is found: the kinds of the `clip` config group
pretrained.py    finding and reading one: transformers' SigLIP, SigLIP 2, CLIP
open_clip_*.py   the same for open_clip's models (imported only where one is used)
image.py         the seam to the tower: image encoders cut before their last layer
text.py          the frozen text encoder and its tokenizer
stand_in.py      a small SigLIP to train from scratch where no CLIP is at hand
"""

from vilau_vision_tower.clip.pretrained import PretrainedClip, load_clip, load_pretrained
from vilau_vision_tower.clip.stand_in import ClipEncoderConfig, ClipStandInConfig, build_clip
from vilau_vision_tower.clip.text import TextEncoder, caption_ids, load_text_tokenizer

__all__ = [
    "ClipEncoderConfig",
    "ClipStandInConfig",
    "PretrainedClip",
    "TextEncoder",
    "build_clip",
    "caption_ids",
    "load_clip",
    "load_pretrained",
    "load_text_tokenizer",
]
