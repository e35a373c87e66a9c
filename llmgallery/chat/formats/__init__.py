"""The languages in which a model's file says how a conversation becomes a prompt: one module each, one interface."""
