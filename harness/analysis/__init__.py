"""Statistics, scaling laws and what a study is judged by: gain, forgetting, regret."""
