"""Runs that others made: read as tables, understood by a mapping file, checked, and kept as ordinary records."""
