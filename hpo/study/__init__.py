"""Study files: what they may say, and the search space they define."""
