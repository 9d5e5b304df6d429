"""The one exception that a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a configuration, data set or checkpoint, told in one sentence.

    The message says what is wrong, where, and what would be right. Entry points print it without a stack
    trace and exit with status 2; every other exception is a defect of ours and keeps its trace.
    """
