"""A queue with several servers, event by event: how long requests wait. Seeded, so repeatable."""

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NUM_REQUESTS = 20_000
NUM_WARM_UP = 1_000  # the queue is empty at first, which it is not later
SEED = 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """Seconds from arrival to the begin of service."""

    p50_s: float
    p95_s: float


def simulate(
    arrivals_per_s: float, mean_service_s: float, spread: float, num_servers: int
) -> Waiting:
    """Poisson arrivals, log-normal service (`spread` is the sigma of its logarithm), first come."""
    rng = random.Random(SEED)
    arrivals = list(poisson(rng, arrivals_per_s, NUM_WARM_UP + NUM_REQUESTS))
    mu = math.log(mean_service_s) - spread**2 / 2  # so that the mean is the mean
    services = [rng.lognormvariate(mu, spread) for _ in arrivals]
    waited = sorted(waits(arrivals, services, num_servers)[NUM_WARM_UP:])
    return Waiting(percentile(waited, 0.5), percentile(waited, 0.95))


def waits(arrivals: Sequence[float], services: Sequence[float], num_servers: int) -> list[float]:
    """How long each request waits for the first server that is free."""
    free_at = [0.0] * num_servers
    waited = []
    for arrival, service in zip(arrivals, services, strict=True):
        begin = max(arrival, heapq.heappop(free_at))
        heapq.heappush(free_at, begin + service)
        waited.append(begin - arrival)
    return waited


def poisson(rng: random.Random, per_s: float, count: int) -> Iterator[float]:
    """Moments of independent arrivals."""
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(per_s)
        yield now


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
