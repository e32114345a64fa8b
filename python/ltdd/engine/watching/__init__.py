"""Show people a run: events, progress, units, and where a result came from."""
