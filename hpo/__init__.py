"""Trials, databases, processes: the search service on top of `core`. No tensor arithmetic."""
