"""This server beside its peers, on the same model and the same machine: `python -m benchmarks.compare`."""
