"""What became of installed files: are they whole, are they needed, and how they move to another machine."""
