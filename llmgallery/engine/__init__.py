"""Batching without a model: sequences, slots, the schedule of each step."""
