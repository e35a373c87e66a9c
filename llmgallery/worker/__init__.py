"""The child process of one model."""
