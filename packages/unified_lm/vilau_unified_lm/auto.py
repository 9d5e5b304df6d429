"""Makes the unified LM and its tower known to transformers' Auto classes.

Importing this module is what registers them (and all that it does). `vilau_unified_lm` itself imports nothing, so that
`vilau --help` does not pay for transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor

import vilau_vision_tower.auto  # noqa: F401  (registers the tower)
from vilau_unified_lm.config import UnifiedLMConfig
from vilau_unified_lm.huggingface.model import UnifiedLMForConditionalGeneration
from vilau_unified_lm.huggingface.processor import UnifiedLMProcessor

AutoConfig.register(UnifiedLMConfig.model_type, UnifiedLMConfig)
AutoModel.register(UnifiedLMConfig, UnifiedLMForConditionalGeneration)
AutoModelForMultimodalLM.register(UnifiedLMConfig, UnifiedLMForConditionalGeneration)
AutoProcessor.register(UnifiedLMConfig, UnifiedLMProcessor)
