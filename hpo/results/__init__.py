"""What a study amounts to, as plain values (plan, status, best), and their display: tables, live view, dashboard."""
