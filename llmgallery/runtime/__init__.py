"""The parent's side of workers: who runs, who waits, who has to go."""
