"""The appliance as a user starts it: ./scripts/start on a fresh data folder and a free port."""

import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 30


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Appliance:
    """A started appliance: its address, what it printed, and how long it took to be ready."""

    port: int
    process: subprocess.Popen
    seconds_to_ready: float = 0
    lines: list[str] = field(default_factory=list)
    is_ready: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def read_output(self):
        started = time.monotonic()
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())
                if "Folio is ready" in line:
                    self.seconds_to_ready = time.monotonic() - started
                    self.is_ready.set()
        self.is_ready.set()

    def stop(self):
        """Press Ctrl-C; returns the exit status and how long it took."""
        started = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.reader.join(STOP_TIMEOUT_S)
        return status, time.monotonic() - started


def start_appliance(data_dir, *options):
    """Run the start script and wait until it says that a question can be asked."""
    port = free_port()
    given = {k: v for k, v in os.environ.items() if not k.startswith(("FOLIO_", "LLM_"))}
    process = subprocess.Popen(
        [ROOT / "scripts/start", "--port", str(port), "--data-dir", data_dir, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=given | {"LLM_MODEL": "extractive"},
        start_new_session=True,
    )
    appliance = Appliance(port, process)
    appliance.reader = threading.Thread(target=appliance.read_output, daemon=True)
    appliance.reader.start()
    is_ready = appliance.is_ready.wait(START_TIMEOUT_S) and appliance.seconds_to_ready
    if not is_ready:
        appliance.stop()
        pytest.fail("the appliance did not become ready:\n" + "\n".join(appliance.lines[-40:]))
    return appliance
