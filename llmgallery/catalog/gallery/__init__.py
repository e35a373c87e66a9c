"""Indexes of models that can be installed."""
