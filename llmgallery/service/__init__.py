"""The one door for every dialect."""
