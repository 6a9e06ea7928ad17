"""Study files: their tables, their checks, and the search space that they define."""
