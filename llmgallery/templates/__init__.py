"""Prompt templates: text in, text out. Knows no chat."""
