"""An embedder that reads no text twice: for measurements that ask the same questions again."""

from collections.abc import Callable, Sequence

import numpy as np

from app.rag.protocols import Embedder, Vectors


class RememberingEmbedder:
    """Implements Embedder by another one; every text's vector is kept."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._documents: dict[str, Vectors] = {}
        self._queries: dict[str, Vectors] = {}
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.max_tokens = embedder.max_tokens
        self.is_multilingual = embedder.is_multilingual

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the other one."""
        return self._embedder.count_tokens(texts)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """As the other one, once for each text: [len(texts), dimension]."""
        return self._embed(texts, self._documents, self._embedder.embed_documents)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """As the other one, once for each text: [len(texts), dimension]."""
        return self._embed(texts, self._queries, self._embedder.embed_queries)

    def _embed(
        self,
        texts: Sequence[str],
        known: dict[str, Vectors],
        embed: Callable[[Sequence[str]], Vectors],
    ) -> Vectors:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known.update(zip(missing, embed(missing), strict=True))
        return np.stack([known[text] for text in texts])
