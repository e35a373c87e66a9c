"""Text: through transformers' continuous batching, or through generate() where that is not enough."""
