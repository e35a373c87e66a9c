"""From a folder and a YAML to a model and its vocabulary."""
