"""What is worth knowing of a config before it is trained for hours."""

from mmkd.doctor.case import Case
from mmkd.doctor.examine import EXAMINATIONS, examine
from mmkd.doctor.findings import Finding, Section
from mmkd.doctor.page import as_data, count, page

__all__ = ["EXAMINATIONS", "Case", "Finding", "Section", "as_data", "count", "examine", "page"]
