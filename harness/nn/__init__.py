"""Torch code that knows no plug-in."""
