"""ExLlamaV2 and ExLlamaV3 behind one name: the weights' format tells which."""
