"""One package a dialect; none imports another."""
