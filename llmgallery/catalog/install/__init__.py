"""From a name that is not here to a model that is: plan, download, write its YAML."""
