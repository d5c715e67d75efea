"""The DuckDB database, derived from the records."""
