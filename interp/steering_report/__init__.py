"""The page of a steering evaluation: fronts, tables, texts and provenance, made of what `interp.steering` measured."""

from interp.steering_report.report import write_report

__all__ = ["write_report"]
