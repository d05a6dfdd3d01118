"""From a load and unit costs to machines: sums for what is stored, a simulation for what waits."""

import math
from dataclasses import dataclass

from app.errors import InvalidInput
from app.scripts.plan_capacity.costs import Costs
from app.scripts.plan_capacity.simulation import Waiting, simulate

BYTES_PER_GB = 1e9
S_PER_HOUR = 3600
FLOAT_BYTES = 4
HNSW_LINKS = 16  # M in app/rag/store.py
LINK_BYTES = 4
# hnswlib: 2 M links at the lowest level, and M at each above, which 1 in M vectors reaches.
GRAPH_BYTES = LINK_BYTES * (2 * HNSW_LINKS + HNSW_LINKS / (HNSW_LINKS - 1))
TERM_BYTES = 8  # the lexical index: which chunk, and the weight
ID_BYTES = 3 * 36  # of chunk, document and knowledge base
BUSY_SHARE = 0.7  # at which Kubernetes adds replicas
MIN_REPLICAS = 2  # one may fail
MAX_REPLICAS = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the installation. `answer_spread` is the sigma of the log of its length."""

    documents: int
    users: int
    questions_per_hour: float
    prompt_tokens: int
    answer_tokens: int
    answer_spread: float
    wait_s: float

    @property
    def questions_per_s(self) -> float:
        """Of all users together."""
        return self.users * self.questions_per_hour / S_PER_HOUR


@dataclass(frozen=True, slots=True)
class Machines:
    """What one of each gives. `seats` are the requests that a generator computes at a time."""

    api_cores: int
    ingest_cores: int
    dimension: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    seats: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is needed; the waits are simulated at these numbers of replicas.

    `answer_s` is how long a mean answer takes from its seat on, with all seats taken.
    """

    questions_per_s: float
    chunks: int
    ingest_hours: float
    milvus_memory_gb: float
    milvus_disk_gb: float
    sql_gb: float
    files_gb: float
    api_replicas: int
    api_wait: Waiting
    generators: int
    generator_wait: Waiting
    generator_busy: float
    answer_s: float
    kv_cache_gb: float


def plan(load: Load, machines: Machines, costs: Costs) -> Plan:
    """Raise InvalidInput where more than `MAX_REPLICAS` would be needed."""
    chunks = round(load.documents * costs.chunks_per_document)
    memory_gb = chunks * vector_bytes(machines.dimension, costs.terms_per_chunk) / BYTES_PER_GB
    api_replicas = api_replicas_for(load.questions_per_s, machines.api_cores, costs.question_core_s)
    generators, waiting = generators_for(load, machines)
    busy_s = generator_s(load, machines)
    tokens = machines.seats * (load.prompt_tokens + load.answer_tokens)
    return Plan(
        questions_per_s=load.questions_per_s,
        chunks=chunks,
        ingest_hours=chunks * costs.ingest_core_s_per_chunk / machines.ingest_cores / S_PER_HOUR,
        milvus_memory_gb=memory_gb,
        milvus_disk_gb=2 * memory_gb,  # the index, and the segments it is made from
        sql_gb=chunks * costs.sql_bytes_per_chunk / BYTES_PER_GB,
        files_gb=load.documents * costs.file_bytes_per_document / BYTES_PER_GB,
        api_replicas=api_replicas,
        api_wait=simulate(
            load.questions_per_s, costs.question_core_s, 0.5, api_replicas * machines.api_cores
        ),
        generators=generators,
        generator_wait=waiting,
        generator_busy=load.questions_per_s * busy_s / generators,
        answer_s=busy_s * machines.seats,
        kv_cache_gb=tokens * machines.kv_bytes_per_token / BYTES_PER_GB,
    )


def vector_bytes(dimension: int, num_terms: int) -> float:
    """Memory of one chunk in Milvus: vector, graph, terms, ids."""
    return dimension * FLOAT_BYTES + GRAPH_BYTES + num_terms * TERM_BYTES + ID_BYTES


def api_replicas_for(questions_per_s: float, cores: int, question_core_s: float) -> int:
    """As many as keep their cores at `BUSY_SHARE`."""
    return max(MIN_REPLICAS, math.ceil(questions_per_s * question_core_s / (cores * BUSY_SHARE)))


def generator_s(load: Load, machines: Machines) -> float:
    """How long one answer occupies a whole generator that computes as many as it has seats."""
    return (
        load.prompt_tokens / machines.prefill_tokens_per_s
        + load.answer_tokens / machines.decode_tokens_per_s
    )


def generators_for(load: Load, machines: Machines) -> tuple[int, Waiting]:
    """The fewest where 95 % of answers begin within the wait that is allowed.

    A seat is a server. All seats are taken to be busy, so that an answer takes `seats` times as
    long as it occupies the generator: the waits are rather too long than too short.
    """
    busy_s = generator_s(load, machines)
    fewest = max(1, math.floor(load.questions_per_s * busy_s) + 1)
    for number in range(fewest, MAX_REPLICAS + 1):
        service_s = busy_s * machines.seats
        waiting = simulate(
            load.questions_per_s, service_s, load.answer_spread, number * machines.seats
        )
        if waiting.p95_s <= load.wait_s:
            return number, waiting
    raise InvalidInput(
        f"{load.questions_per_s:.2f} questions a second need more than {MAX_REPLICAS} generators "
        f"that take {busy_s:.2f} s for an answer: measure a faster one"
    )
