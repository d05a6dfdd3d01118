"""Turns what Compose makes of docker-compose.yml into what Swarm takes: it knows no start order.

docker compose config --format json | python3 deploy/swarm.py >stack.json
docker stack deploy --compose-file stack.json folio
"""

import json
import sys
from typing import Any

UNKNOWN_TO_SWARM = ("build", "depends_on", "profiles", "restart", "security_opt")


def swarm_service(service: dict[str, Any]) -> dict[str, Any]:
    """Without what Swarm refuses; services start at once and wait for each other by themselves.

    Swarm cannot publish on one address only, and ignores no-new-privileges: see operations.md.
    """
    kept = {name: value for name, value in service.items() if name not in UNKNOWN_TO_SWARM}
    kept["deploy"] = {**kept.get("deploy", {}), "restart_policy": {"condition": "any"}}
    kept["ports"] = [
        {"target": port["target"], "published": int(port["published"]), "mode": "host"}
        for port in service.get("ports", [])
    ]
    return kept


def main() -> None:
    """Standard input to standard output."""
    config = json.load(sys.stdin)
    services = {name: swarm_service(service) for name, service in config["services"].items()}
    networks = {
        name: {"driver": "overlay", "internal": bool(network.get("internal"))}
        for name, network in config["networks"].items()
    }
    stack = {
        "version": "3.8",
        "services": services,
        "networks": networks,
        "volumes": {name: {} for name in config["volumes"]},
    }
    json.dump(stack, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
