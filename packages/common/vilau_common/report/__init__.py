"""A demo run as one page to look at: `build_report(run)` writes report/index.html and report/overview.png."""

from vilau_common.report.build import build_report

__all__ = ["build_report"]
