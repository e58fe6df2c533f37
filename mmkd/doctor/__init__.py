"""Check a config before training it for hours."""

from mmkd.doctor.examine import EXAMINATIONS, examine
from mmkd.doctor.findings import Finding, Section
from mmkd.doctor.page import as_data, count, html_page, page
from mmkd.doctor.setup import TrainingSetup

__all__ = [
    "EXAMINATIONS",
    "Finding",
    "Section",
    "TrainingSetup",
    "as_data",
    "count",
    "examine",
    "html_page",
    "page",
]
