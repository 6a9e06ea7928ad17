"""Trials, databases, processes: the search service on top of `core`. No tensor arithmetic."""

DISTRIBUTION = "sparse-evidence-hpo"
"""The name under which both halves are installed."""
