"""Plan, status and best trial of a study as plain values, and their display: tables, live view, dashboard."""
