"""Judges finished models without a study: what a tuned one lost of what its base could do."""
