"""Makes the tower known to transformers' Auto classes.

Importing this module is what registers them (and all that it does): `vilau_vision_tower` itself imports nothing, so
that programs which need no tower do not pay for transformers.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.image_processor import VisionTowerImageProcessor
from vilau_vision_tower.tower import VisionTower

AutoConfig.register(VisionTowerConfig.model_type, VisionTowerConfig)
AutoModel.register(VisionTowerConfig, VisionTower)
# One class for both of transformers' backends: it takes Pillow's pixels, as trainings do.
AutoImageProcessor.register(
    VisionTowerConfig,
    slow_image_processor_class=VisionTowerImageProcessor,
    fast_image_processor_class=VisionTowerImageProcessor,
)
