"""Calls of functions in answers: how models write them, and what of an answer they are."""
