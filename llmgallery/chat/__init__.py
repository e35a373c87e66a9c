"""From messages to a prompt, and from text back to events. Workers only."""
