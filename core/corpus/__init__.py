"""Labelled posts: the corpus itself, a reader for each kind of source, and the registry of sources."""
