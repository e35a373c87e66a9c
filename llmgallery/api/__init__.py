"""HTTP: dialects over the service."""
