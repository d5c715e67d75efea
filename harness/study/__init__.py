"""A study file and the pipeline families that it names."""
