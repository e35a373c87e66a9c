"""Jina's reranking, as llama-server, LocalAI, vLLM and text-embeddings-inference speak it too."""
