"""Generation: sampling, prompts in a batch, and the engine with its caches on both axes."""
