"""Seeing what happened: run folders -> one self-contained HTML page, without model or images.

run.py                        reads a run folder; whatever is missing or damaged becomes a note
catalogue.py                  what a figure is called, its unit, which way is better
markup.py, words.py           escaped HTML; numbers as people read them
scales.py, chart.py, ...      data -> inline SVG
summary.py, progress.py, ...  one section each
page.py                       the whole
"""

from mpsoftmax.report.page import render, write_report

__all__ = ["render", "write_report"]
