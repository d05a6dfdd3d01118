"""The RAG stages: parse, chunk, embed, store, retrieve, rerank, prompt, generate, cite."""
