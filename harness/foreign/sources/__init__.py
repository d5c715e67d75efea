"""Kinds of files that runs come in, one file each."""
