"""Methods: which parameters move."""
