"""Measurements against other implementations: describe the contenders, measure, report.

``tools/benchmark.py`` is the command. Start reading with ``contenders.py``.
"""
