"""The unified LM: one causal language model that reads and writes text and visual codes."""
