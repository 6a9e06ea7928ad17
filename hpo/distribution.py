"""The name under which both halves are installed."""

DISTRIBUTION = "sparse-evidence-hpo"
