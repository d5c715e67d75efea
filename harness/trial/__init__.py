"""One trial from its configuration to its record, and packs of trials that run together."""
