"""Engines behind one protocol; one package each."""
