"""Models that are elsewhere, behind an API such as OpenAI's."""
