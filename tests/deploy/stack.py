"""The compose file, up: a project of its own with its ports, asked as a user asks."""

import json
import os
import signal
import socket
import time

import httpx

from tests.deploy.docker_engine import COMPOSE

UP_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 120
OURS = ("FOLIO_", "LLM_", "MILVUS_", "ETCD_", "COMPOSE_", "POSTGRES_", "PROMETHEUS_")
TEXT = (
    "# The lighthouse of Marrow Point\n\nThe lighthouse of Marrow Point was built in 1874. "
    "Its keeper wound the clockwork every four hours.\n"
)
QUESTION, FACT = "When was the lighthouse of Marrow Point built?", "1874"


# Milvus 2.3, the stand-in, does not read its first password from the environment; 2.6 does.
SET_PASSWORD = """
from pathlib import Path
from pymilvus import MilvusClient
password = Path("/run/folio/milvus_password").read_text()
client = MilvusClient("http://milvus:19530", token="root:Milvus", timeout=30)
client.update_password("root", "Milvus", password)
"""


class Stack:
    """`settings` are the lines of .env."""

    def __init__(self, docker, root, folder, name, settings):
        self.docker = docker
        self.name = name
        self._root = root
        self._env_file = folder / f"{name}.env"
        self.web_port, self.api_port, prometheus_port = free_ports(3)
        self.settings = {
            "LLM_MODEL": "extractive",
            "FOLIO_WEB_PORT": self.web_port,
            "FOLIO_PORT": self.api_port,
            "PROMETHEUS_PORT": prometheus_port,
            "FOLIO_MEMORY": "3g",
            "MILVUS_MEMORY": "4g",
            **settings,
        }

    def compose(self, *arguments, timeout=UP_TIMEOUT_S):
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        self._env_file.write_text("".join(lines))
        given = {name: "" for name in os.environ if name.startswith(OURS)}
        assert not given, f"unset {', '.join(given)}: they would change the stack"
        files = ["--file", self._root / "docker-compose.yml", "--env-file", self._env_file]
        command = ["--project-name", self.name, *files, *arguments]
        return self.docker.call(*command, timeout=timeout, program=COMPOSE).stdout

    def up(self, *services):
        self.compose("up", "--detach", "--no-build", "--wait", *services)

    def first_up(self, *services):
        self.up(*services)
        self.docker.run("exec", self.container("app"), "python", "-c", SET_PASSWORD)

    def down(self):
        self.compose("down", "--timeout", "30")

    def destroy(self):
        self.compose("down", "--volumes", "--timeout", "2", "--remove-orphans")

    def container(self, service):
        return f"{self.name}-{service}-1"

    def state(self, service):
        return self.docker.inspect(self.container(service))["State"]

    def exec(self, service, script, is_checked=True):
        """What a shell script says inside a container."""
        command = ("exec", self.container(service), "sh", "-c", script)
        return self.docker.call(*command, is_checked=is_checked)

    def kill(self, service):
        """Kill it as a fault would, and wait until Docker has started it again.

        Docker takes its own `kill` for the operator's wish, and restarts nothing.
        """
        before = self.state(service)
        os.kill(before["Pid"], signal.SIGKILL)
        wait_until(lambda: self.state(service)["StartedAt"] != before["StartedAt"])

    def web(self):
        """A client of nginx."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.web_port}", timeout=30)

    def wait_until_answering(self):
        """Through nginx: every dependency is there, and a question gets its answer."""
        with self.web() as client:
            wait_until(lambda: is_ready(client))
            wait_until(lambda: FACT in ask(client, QUESTION)[0])

    def upload(self, name="lighthouse.md", text=TEXT):
        with self.web() as client:
            wait_until(lambda: is_ready(client))
            sent = client.post("/api/documents", files={"files": (name, text.encode())})
            (document,) = sent.json()["accepted"]
            path = f"/api/documents/{document['id']}"
            wait_until(lambda: client.get(path).json()["status"] in ("ready", "failed"))
            return client.get(path).json()


def is_ready(client):
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def ask(client, text):
    """The answer, and its events, each with the time it came in; no answer where it failed."""
    try:
        chat_id = client.post("/api/chats", json={}).json()["id"]
        run = client.post(f"/api/chats/{chat_id}/messages", json={"text": text}).json()
        events = list(read_events(client, run["run_id"]))
    except (httpx.TransportError, KeyError, json.JSONDecodeError):
        return "", []
    _, name, data = events[-1]
    return (data["content"] if name == "done" else ""), events


def read_events(client, run_id):
    path = f"/api/runs/{run_id}/events"
    with client.stream("GET", path, timeout=ANSWER_TIMEOUT_S) as response:
        assert response.status_code == 200
        name = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                yield time.monotonic(), name, json.loads(line.removeprefix("data:"))


def wait_until(is_done, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.5)


def free_ports(count):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in with_ports]
    for listener in with_ports:
        listener.close()
    return ports
