"""llmgallery: a folder of YAML files, one per language model, behind the APIs that tools already speak."""

__version__ = "0.1.0"
