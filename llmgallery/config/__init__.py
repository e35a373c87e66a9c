"""The YAML files: typed, strict, with positions."""
