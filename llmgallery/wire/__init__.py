"""Every message between server and worker, a named type."""
