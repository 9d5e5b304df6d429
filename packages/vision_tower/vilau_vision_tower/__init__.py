"""The vision tower: images become a grid of residual codes that carry both pixels and meaning."""
