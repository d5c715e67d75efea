"""Samplers: who proposes the next trial of a family."""
