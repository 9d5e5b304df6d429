"""Settings of the easy_vqa world."""

from __future__ import annotations

from dataclasses import dataclass

from vilau_common.data.worlds.base import WorldConfig
from vilau_common.errors import UserError

SMALLEST_IMAGE = 24
"""Below this the smallest triangles are three pixels wide and cannot be told from circles."""
SOURCE_IMAGE = 64
"""Pixels a side of the package's own pictures; enlarging them would add nothing."""


@dataclass(kw_only=True)
class EasyVqaConfig(WorldConfig):
    """Settings of the easy_vqa world; the splits are the package's own."""

    train_limit: int | None = None  # at most so many pictures of the split, None for all 4,000
    test_limit: int | None = None  # None for all 1,000

    def check(self) -> None:
        """Raise a UserError if a setting is out of range."""
        if not SMALLEST_IMAGE <= self.image_size <= SOURCE_IMAGE:
            raise UserError(
                f"data.image_size is {self.image_size}; easy_vqa takes {SMALLEST_IMAGE}..{SOURCE_IMAGE}"
            )
        for name in ("train_limit", "test_limit"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise UserError(f"data.{name} is {limit}; it must be at least 1, or null for all pictures")
