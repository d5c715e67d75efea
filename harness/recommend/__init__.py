"""Learns from the records, and recommends pipelines with their measured regret."""
