"""A Docker Engine of the tests' own: its data in a cache folder, ended by its process id."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

# The client of the engine's own package; a newer one on PATH may want a plugin to build.
CLIENT = "/usr/bin/docker"
COMPOSE = str(Path(sys.executable).with_name("docker-compose"))
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 1200
NEEDED_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def why_docker_cannot_run():
    """What this user lacks to run an engine; empty where nothing."""
    if sys.platform != "linux":
        return "a Docker Engine of the tests' own needs Linux"
    if os.geteuid() != 0:
        return "a Docker Engine of the tests' own needs root"
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, bit in NEEDED_CAPABILITIES.items() if not effective >> bit & 1]
    return f"a Docker Engine of the tests' own needs {', '.join(missing)}" if missing else ""


class DockerEngine:
    """One engine for each cache folder at a time: another test run waits for its end."""

    def __init__(self, cache, folder):
        self._cache = cache
        self._folder = folder
        self._open = ExitStack()
        self.host = f"unix://{folder / 'docker.sock'}"

    def start(self):
        self._cache.mkdir(parents=True, exist_ok=True)
        lock = self._open.enter_context((self._cache / "lock").open("w"))
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not try_lock(lock):
            assert time.monotonic() < deadline, f"another test run holds {self._cache}"
            time.sleep(1)
        log = self._folder / "dockerd.log"
        command = [shutil.which("dockerd"), "--host", self.host]
        for option, name in (("exec-root", "exec"), ("pidfile", "dockerd.pid")):
            command += [f"--{option}", str(self._folder / name)]
        command += ["--data-root", str(self._cache / "docker")]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        self._open.callback(self._end)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.call("version", is_checked=False).returncode != 0:
            alive = self._process.poll() is None and time.monotonic() < deadline
            if not alive:
                tail = log.read_text()[-3000:]
                self.stop()
                raise AssertionError(f"dockerd does not start:\n{tail}")
            time.sleep(0.2)
        self._remove_leftovers()

    def stop(self):
        self._open.close()

    def call(self, *arguments, timeout=120, is_checked=True, program=CLIENT, env=None):
        """Run the client (or Compose) against this engine."""
        done = subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", **(env or {})},
        )
        if is_checked:
            said = (done.stdout + done.stderr)[-4000:]
            assert done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{said}"
        return done

    def run(self, *arguments, timeout=120):
        """What the client says on standard output."""
        return self.call(*arguments, timeout=timeout).stdout.strip()

    def inspect(self, name):
        return json.loads(self.run("inspect", name))[0]

    def has_image(self, name):
        return self.call("image", "inspect", name, is_checked=False).returncode == 0

    def _remove_leftovers(self):
        """Of a run that was killed."""
        containers = self.run("ps", "--all", "--quiet").split()
        if containers:
            self.run("rm", "--force", "--volumes", *containers)
        self.run("network", "prune", "--force")
        volumes = self.run("volume", "ls", "--quiet").split()
        if volumes:
            self.run("volume", "rm", "--force", *volumes)
        self.run("image", "prune", "--force")

    def _end(self):
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)


def try_lock(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
