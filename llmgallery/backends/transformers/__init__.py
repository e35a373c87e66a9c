"""transformers: models in the format of the Hugging Face Hub, through torch."""
