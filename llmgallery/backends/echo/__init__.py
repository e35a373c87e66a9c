"""The backend that needs no weights."""
