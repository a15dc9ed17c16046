"""Measurements against other implementations; ``tools/benchmark.py`` is the command.

``contenders.py`` describes who is measured, ``measure.py`` times them, ``report.py`` presents the
record. A module for each kind of work has ``add_arguments(parser, task)`` and ``run(args)``, which
compares the contenders' results, measures them, and returns the record of ``make_record``. A new
one gets its line in ``TASKS`` of the command.
"""
