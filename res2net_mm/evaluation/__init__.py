"""Metrics, analyses and pages of results."""
