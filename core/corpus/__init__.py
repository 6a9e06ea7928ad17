"""Labelled posts: the corpus itself, the readers of each source, and the registry of sources."""
