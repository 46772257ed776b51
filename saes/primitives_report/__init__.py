"""The page of the literary primitives: what was found, what writes an emotion, beside every control."""

from saes.primitives_report.report import write_primitives_report

__all__ = ["write_primitives_report"]
