"""The six stages; each takes and returns data, none imports another."""
