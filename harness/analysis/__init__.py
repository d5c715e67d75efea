"""Statistics, scaling laws and regret."""
