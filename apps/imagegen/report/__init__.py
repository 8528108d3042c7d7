"""The report of a run: one HTML file with every figure beside what it should be compared with."""

from imagegen.report.content import ReportContent
from imagegen.report.write import render_report, write_report

__all__ = ["ReportContent", "render_report", "write_report"]
