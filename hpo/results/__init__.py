"""A study as values and as what people look at."""
