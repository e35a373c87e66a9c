"""Measuring a server from outside, over OpenAI's streaming API: prompts, timed answers, figures, tables."""
