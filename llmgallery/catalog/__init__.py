"""What is there and what can be fetched: registry, hub, file formats."""
