"""Evaluation of a run: the tower's codes, answers, captions and drawings, all on test data."""
