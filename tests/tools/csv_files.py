"""CSV files for tests. No file here holds a real person's text."""

import csv

SECRET = "purple elephants"  # stands for a post's text, which must never appear in a message


def write_csv(path, *rows, encoding="utf-8", delimiter=","):
    """Write rows of cells to a file; return its path."""
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path
