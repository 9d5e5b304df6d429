"""What the vision tower and the unified LM share: configuration, data, the training loop, reports."""
