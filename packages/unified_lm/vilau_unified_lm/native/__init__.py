"""The unified LM as a Hugging Face model: processor, `generate`, model card. `vilau_unified_lm.auto` registers them."""
