"""Measurements against other implementations: each task gives a record, a report is made of it."""
