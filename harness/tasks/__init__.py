"""Tasks: what a name stands for, pinned; its rows, its splits and lm-eval's own object."""
