"""Importing this module makes the models known to transformers' Auto classes and pipelines.

    import vilau_unified_lm.auto
    from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

Registering is all that it does, at import, as transformers' own extension packages do. `vilau_unified_lm` itself does
not: its command line would then take seconds to show its help.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.native.model import VilaUForMultimodalLM
from vilau_unified_lm.native.processor import VilaUProcessor
from vilau_vision_tower.config import VisionTowerConfig
from vilau_vision_tower.tower import VisionTower

AutoConfig.register(UnifiedLMConfig.model_type, UnifiedLMConfig)
AutoConfig.register(VisionTowerConfig.model_type, VisionTowerConfig)
AutoModel.register(UnifiedLMConfig, VilaUForMultimodalLM)
AutoModel.register(VisionTowerConfig, VisionTower)
AutoModelForMultimodalLM.register(UnifiedLMConfig, VilaUForMultimodalLM)
AutoProcessor.register(UnifiedLMConfig, VilaUProcessor)
# The any-to-any pipeline looks names up here, and warns of classes that it does not find.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[UnifiedLMConfig.model_type] = VilaUForMultimodalLM.__name__
