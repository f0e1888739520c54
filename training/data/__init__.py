"""Sources of labelled pairs, and their split by query."""
