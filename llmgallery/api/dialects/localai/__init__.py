"""LocalAI's routes for what is installed, with streams of our own beside them."""
