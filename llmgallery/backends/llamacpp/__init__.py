"""GGUF files on llama.cpp's C API."""
