"""Postgres: connections, the embedded server, Optuna's tables, the claims table."""
