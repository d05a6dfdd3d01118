"""The vector index on Milvus: the only module that knows pymilvus.

One class serves Milvus Lite (a path: the index lives inside this process) and a Milvus server
(a URI). The index is derived from SQL and can be rebuilt at any time; its collection is named
after what made it (embedding model, dimension, chunker). Several may lie side by side; the alias
`folio` stands for the one that serves, for those who look from outside: this class asks its
collection by name, so that a question is answered by one index throughout. Writes are upserts,
since insert duplicates on a server.
"""

import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from grpc import RpcError
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from app.domain import EVERYWHERE, SearchScope
from app.errors import InvalidInput, StoreUnavailable
from app.metrics import vector_query_latency
from app.rag.protocols import ChunkVectors, ScoredChunk, SparseVector, Vectors

logger = logging.getLogger(__name__)

ALIAS = "folio"
# Milvus allows 65 535 characters in a filter: a thousand ids of 32 in all stay below.
MAX_IDS = 1000
MAX_ID_LENGTH = 64
# A gRPC message may have 64 MB on a server: a thousand rows of 1 024 floats have 5.
MAX_ROWS = 1000
# Sparse vectors came with Milvus 2.4.
FIRST_VERSION_WITH_SPARSE = (2, 4)
# A search sees all that was flushed; a delete on a server it may see a moment later, which is no
# harm, as SQL knows no such chunk. Strong consistency took 350 ms a search there instead of 14.
SEARCH_CONSISTENCY, COUNT_CONSISTENCY = "Session", "Strong"
# Milvus refuses an empty sparse vector. Term ids have 31 bits, so nobody asks for this one.
NO_TERMS = {2**31: 1.0}
# Probes ask every few seconds and give up themselves after some.
CHECK_TIMEOUT_S = 3.0
HNSW = {"M": 16, "efConstruction": 200}
Answer = TypeVar("Answer")
Item = TypeVar("Item")


# Milvus Lite takes the client's pings of an idle connection for an attack and closes it, loudly.
NO_PINGS = {"grpc.keepalive_permit_without_calls": False}


class MilvusStore:
    """Implements VectorStore. `open()` before use; calls block for `timeout_s` at most.

    Where a server is too old for sparse vectors, `search_sparse` finds nothing, and the log and
    `check()` say so.
    """

    def __init__(
        self,
        uri: str,
        token: str | None,
        embedder_name: str,
        dimension: int,
        *,
        chunker_version: str = "1",
        timeout_s: float = 30.0,
    ) -> None:
        self.uri = uri
        self.is_embedded = "://" not in uri
        if self.is_embedded and not uri.endswith(".db"):
            raise InvalidInput(f"the path of a Milvus Lite index ends in .db, {uri!r} does not")
        self.collection = collection_name(embedder_name, dimension, chunker_version)
        self.has_sparse = True
        self._token = token
        self._dimension = dimension
        self._timeout_s = timeout_s
        self._client: MilvusClient | None = None
        self._version = ""
        self._warm_up: Thread | None = None
        self._asking: Future[None] | None = None

    @property
    def index_name(self) -> str:
        """The versioned collection behind the alias."""
        return self.collection

    def open(self) -> None:
        """Connect, and make and load the collection where it is missing.

        Raises StoreUnavailable with the way out.
        """
        self._client = self._connect()
        self._version = self._call("version", self._client.get_server_version)
        self.has_sparse = self.is_embedded or supports_sparse(self._version)
        if not self.has_sparse:
            logger.warning(
                "Milvus has no sparse vectors, lexical search is off; 2.4 or later has "
                "uri=%s version=%s",
                *(self.uri, self._version),
            )
        self._call("prepare", self._prepare)
        self.point_alias()
        if self.is_embedded:
            self._warm_up = Thread(target=self._read_all, name="index-warm-up")
            self._warm_up.start()
        logger.info(
            "index opened uri=%s version=%s collection=%s",
            *(self.uri, self._version, self.collection),
        )

    def beside(self, embedder_name: str, dimension: int, *, chunker_version: str) -> "MilvusStore":
        """Another index on the same connection, made where it is missing; this one closes both."""
        other = MilvusStore(
            self.uri,
            self._token,
            embedder_name,
            dimension,
            chunker_version=chunker_version,
            timeout_s=self._timeout_s,
        )
        other._client, other._version = self._open_client(), self._version
        other.has_sparse = self.has_sparse
        other._call("prepare", other._prepare)
        return other

    def point_alias(self) -> None:
        """Have the alias stand for this index, for those who look from outside."""
        self._call("alias", self._point_alias)

    def drop(self, index_name: str) -> None:
        """Delete an index with all its vectors; an unknown one is no error."""
        self._call("drop", self._drop, index_name)

    def close(self) -> None:
        """Let go of the connection and, embedded, of the files. Twice is no error."""
        if self._client is None:
            return
        if self._warm_up is not None:
            self._warm_up.join(self._timeout_s)
        self._client.close()
        self._client = None
        if self.is_embedded:
            server_manager_instance.release_server(self.uri)

    def upsert(self, chunks: Sequence[ChunkVectors]) -> None:
        """Write; after it returns the chunks are durable and searchable.

        A server keeps what it acknowledged in its log, and shows a session its own writes; it
        takes one flush in ten seconds only. Lite is flushed, as unflushed rows slow its searches.
        """
        client = self._open_client()
        rows = [self._row(chunk) for chunk in chunks]
        for piece in pieces(rows, MAX_ROWS):
            self._call("upsert", client.upsert, self.collection, data=piece)
        if self.is_embedded:
            self._call("flush", client.flush, self.collection)

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete all chunks of these documents; unknown ids are no error."""
        client = self._open_client()
        for piece in pieces(document_ids, MAX_IDS):
            self._call(
                "delete", client.delete, self.collection, filter=is_one_of("document_id", piece)
            )

    def delete_chunks(self, chunk_ids: Sequence[str]) -> None:
        """Delete these chunks; unknown ids are no error."""
        client = self._open_client()
        for piece in pieces(chunk_ids, MAX_IDS):
            self._call(
                "delete", client.delete, self.collection, filter=is_one_of("chunk_id", piece)
            )

    def search_dense(self, vector: Vectors, limit: int, scope: SearchScope) -> list[ScoredChunk]:
        """Find the chunks with the highest cosine, best first."""
        params = {} if self.is_embedded else {"ef": max(64, 2 * limit)}
        return self._search("dense", vector.reshape(-1).tolist(), limit, scope, params)

    def search_sparse(
        self, vector: SparseVector, limit: int, scope: SearchScope
    ) -> list[ScoredChunk]:
        """Find the chunks with the highest inner product above 0, best first."""
        if not vector or not self.has_sparse:
            return []
        hits = self._search("sparse", dict(vector), limit, scope, {})
        return [hit for hit in hits if hit.score > 0]

    def count(self) -> int:
        """Count the chunks."""
        client = self._open_client()
        rows = self._call(
            "count",
            client.query,
            self.collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level=COUNT_CONSISTENCY,
        )
        return int(rows[0]["count(*)"])

    def check(self) -> str:
        """Ask a real query, for `CHECK_TIMEOUT_S` at most; returns the server and its version.

        pymilvus reconnects within a call, whatever the call's limit: so a thread asks.
        """
        client = self._open_client()
        if self._asking is None or self._asking.done():
            self._asking = Future()
            Thread(target=self._ask, args=(client, self._asking), name="check", daemon=True).start()
        try:
            self._asking.result(CHECK_TIMEOUT_S)
        except TimeoutError:
            raise StoreUnavailable(
                f"the index at {self.uri} did not answer within {CHECK_TIMEOUT_S:g} s"
            ) from None
        name = "Milvus Lite" if self.is_embedded else "Milvus"
        lack = "" if self.has_sparse else ", no sparse vectors: lexical search is off"
        return f"{name} {self._version.removeprefix('milvus_lite-')}{lack}"

    def _ask(self, client: MilvusClient, asking: "Future[None]") -> None:
        try:
            self._call(
                "check",
                client.query,
                self.collection,
                filter=is_one_of("chunk_id", [""]),
                output_fields=["chunk_id"],
                limit=1,
                consistency_level=SEARCH_CONSISTENCY,
            )
        except Exception as error:  # noqa: BLE001 - raised where the result is read
            asking.set_exception(error)
        else:
            asking.set_result(None)

    def _connect(self) -> MilvusClient:
        if self.is_embedded:
            Path(self.uri).expanduser().parent.mkdir(parents=True, exist_ok=True)
        try:
            return MilvusClient(
                uri=self.uri,
                token=self._token or "",
                timeout=self._timeout_s,
                grpc_options=NO_PINGS if self.is_embedded else {},
            )
        except (MilvusException, RpcError, OSError) as error:
            way_out = (
                "is another Folio running on this data folder?"
                if self.is_embedded
                else "check FOLIO_MILVUS_URI, FOLIO_MILVUS_TOKEN and that the server is up"
            )
            raise StoreUnavailable(
                f"the index at {self.uri} cannot be opened: {reason(error)}; {way_out}"
            ) from error

    def _prepare(self, timeout: float) -> None:
        client = self._open_client()
        if not client.has_collection(self.collection, timeout=timeout):
            client.create_collection(
                self.collection,
                schema=self._schema(client),
                index_params=self._indexes(client),
                consistency_level=SEARCH_CONSISTENCY,
                timeout=timeout,
            )
        client.load_collection(self.collection, timeout=timeout)

    def _point_alias(self, timeout: float) -> None:
        client = self._open_client()
        current = alias_target(client, timeout)
        if current is None:
            client.create_alias(self.collection, ALIAS, timeout=timeout)
        elif current != self.collection:
            logger.warning("index alias moved from=%s to=%s", current, self.collection)
            client.alter_alias(self.collection, ALIAS, timeout=timeout)

    def _drop(self, index_name: str, timeout: float) -> None:
        client = self._open_client()
        if not client.has_collection(index_name, timeout=timeout):
            return
        if alias_target(client, timeout) == index_name:
            client.alter_alias(self.collection, ALIAS, timeout=timeout)
        client.drop_collection(index_name, timeout=timeout)

    def _schema(self, client: MilvusClient) -> Any:  # pymilvus is untyped
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("chunk_id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_LENGTH)
        schema.add_field("document_id", DataType.VARCHAR, max_length=MAX_ID_LENGTH)
        schema.add_field("collection_id", DataType.VARCHAR, max_length=MAX_ID_LENGTH)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=self._dimension)
        if self.has_sparse:
            schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        return schema

    def _indexes(self, client: MilvusClient) -> Any:  # pymilvus is untyped
        indexes = client.prepare_index_params()
        # Lite walks all rows in Python for either, and FLAT is exact.
        if self.is_embedded:
            indexes.add_index("dense", index_type="FLAT", metric_type="IP")
        else:
            indexes.add_index("dense", index_type="HNSW", metric_type="IP", params=HNSW)
        if self.has_sparse:
            indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        return indexes

    def _row(self, chunk: ChunkVectors) -> dict[str, Any]:
        row = {
            "chunk_id": chunk.chunk_id,
            "document_id": chunk.document_id,
            "collection_id": chunk.collection_id,
            "dense": chunk.dense.reshape(-1).tolist(),
        }
        sparse = dict(chunk.sparse) or NO_TERMS
        return row | {"sparse": sparse} if self.has_sparse else row

    def _search(
        self,
        field: str,
        vector: object,
        limit: int,
        scope: SearchScope,
        params: dict[str, Any],
    ) -> list[ScoredChunk]:
        assert scope.filter is None, "the retriever resolves filters"
        if scope.is_empty:
            return []
        found = [
            hit
            for condition in conditions(scope)
            for hit in self._search_where(condition, field, vector, limit, params)
        ]
        return sorted(found, key=lambda hit: -hit.score)[:limit]

    def _search_where(
        self, condition: str, field: str, vector: object, limit: int, params: dict[str, Any]
    ) -> list[ScoredChunk]:
        client = self._open_client()
        [hits] = self._call(
            f"search_{field}",
            client.search,
            self.collection,
            data=[vector],
            anns_field=field,
            limit=limit,
            filter=condition,
            output_fields=["chunk_id"],
            search_params={"metric_type": "IP", "params": params},
            consistency_level=SEARCH_CONSISTENCY,
        )
        return [ScoredChunk(hit["chunk_id"], float(hit["distance"])) for hit in hits]

    def _read_all(self) -> None:
        """Make Lite build its postings now, 0.3 ms a chunk, and not in the first question."""
        try:
            self.search_sparse({0: 1.0}, 1, EVERYWHERE)
        except StoreUnavailable as error:
            logger.warning("index warm-up failed reason=%s", error)

    def _open_client(self) -> MilvusClient:
        if self._client is None:
            raise StoreUnavailable(f"the index at {self.uri} is not open")
        return self._client

    def _call(
        self, operation: str, call: Callable[..., Answer], *args: object, **kwargs: object
    ) -> Answer:
        """Call pymilvus within the time limit, time it, and raise our error for its own."""
        with vector_query_latency.labels(operation).time():
            try:
                return call(*args, **kwargs, timeout=self._timeout_s)
            except (MilvusException, RpcError) as error:
                raise StoreUnavailable(
                    f"{operation} failed on the index at {self.uri}: {reason(error)}"
                ) from error


def collection_name(embedder_name: str, dimension: int, chunker_version: str) -> str:
    """Name a collection after what made it, in the letters that Milvus allows.

    The checksum tells names apart that differ in other letters only.
    """
    slug = re.sub(r"\W+", "_", embedder_name, flags=re.ASCII).strip("_")[-80:]
    checksum = zlib.crc32(f"{embedder_name} {chunker_version}".encode())
    return f"folio_{slug}_{dimension}_{checksum:08x}"


def supports_sparse(version: str) -> bool:
    """Tell by a server's version, such as "v2.3.5"; one that is not a number is new."""
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return not match or (int(match[1]), int(match[2])) >= FIRST_VERSION_WITH_SPARSE


def alias_target(client: MilvusClient, timeout: float) -> str | None:
    """Return the collection that our alias stands for, or None."""
    for name in client.list_collections(timeout=timeout):
        if ALIAS in client.list_aliases(name, timeout=timeout).get("aliases", []):
            return str(name)
    return None


def conditions(scope: SearchScope) -> list[str]:
    """Write a scope as filters of Milvus, one search each; empty where all may be searched.

    Documents are few enough in each for the length that a filter may have.
    """
    named = (("collection_id", scope.collection_ids), ("document_id", scope.document_ids))
    given = [(field, ids) for field, ids in named if ids is not None]
    room = MAX_IDS // max(1, len(given))
    parts = ([is_one_of(field, piece) for piece in pieces(ids, room)] for field, ids in given)
    return [" and ".join(together) for together in product(*parts)]


def is_one_of(field: str, values: Sequence[str]) -> str:
    """Write a filter; values are quoted, whatever is in them."""
    return f"{field} in {json.dumps(list(values), ensure_ascii=False)}"


def pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def reason(error: Exception) -> str:
    """Shorten an error of pymilvus to its message."""
    message = getattr(error, "message", "") or str(error)
    return " ".join(str(message).split())[:300]
