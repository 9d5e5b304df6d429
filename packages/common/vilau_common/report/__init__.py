"""Runs as pages to look at: `build_report(run)` writes report/index.html and report/overview.png of one,
`compare_runs(runs)` lays several side by side."""

from vilau_common.report.build import build_report
from vilau_common.report.compare import compare_runs

__all__ = ["build_report", "compare_runs"]
