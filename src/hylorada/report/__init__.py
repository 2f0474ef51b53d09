"""Tables, figures and one page, made from the records of runs alone; nothing here loads torch."""

from hylorada.report.command import main

__all__ = ["main"]
