"""Techniques of the literature that the catalogue does not have, each with the reason: `harness list left_out`."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "ppo": ("TRL has no PPO trainer any more; rloo and grpo take its place", "Schulman et al. 2017, arXiv 1707.06347"),
}
"""Name to the reason and the source."""
