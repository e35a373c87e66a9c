"""Vectors and scores, as sentence-transformers' files and the models' own heads say."""
