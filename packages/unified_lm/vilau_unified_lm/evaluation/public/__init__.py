"""Evaluation on public data sets, read from their official files: `vilau evaluate-public`."""
