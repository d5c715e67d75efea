"""Trains one stage of one trial, or of several trials together."""
