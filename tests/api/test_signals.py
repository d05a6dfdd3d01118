"""Ctrl-C at the engine's own server, in a process of its own, while a long answer is in flight."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.engine import tiny

START_TIMEOUT_S = 90
LONG = {
    "prompt": ["The pages"] * 8,  # one after another: seconds
    "max_tokens": 480,
    "ignore_eos": True,
    "stream": True,
}


class Answer(threading.Thread):
    """A streamed answer being read; `reasons` are why its parts ended."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url = url
        self.has_begun = threading.Event()
        self.reasons = []

    def run(self):
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=LONG, timeout=60) as reply:
                for line in reply.iter_lines():
                    self.has_begun.set()
                    if line.startswith("data: {"):
                        choice = json.loads(line.removeprefix("data: "))["choices"][0]
                        self.reasons += filter(None, [choice["finish_reason"]])
        except httpx.TransportError:
            pass  # the process ended


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    tiny.make_checkpoint(folder, "qwen2")
    return folder


@pytest.fixture
def process(model, tmp_path):
    given = {k: v for k, v in os.environ.items() if not k.startswith(("FOLIO_", "LLM_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--role", "generate", "--port", str(free_port())],
        stderr=subprocess.PIPE,
        text=True,
        env=given
        | {
            "LLM_MODEL": str(model),
            "FOLIO_HOST": "127.0.0.1",
            "FOLIO_ENGINE_DTYPE": "float32",
            "FOLIO_ENGINE_KV_CACHE_MB": "8",
            "FOLIO_ENGINE_MAX_NUM_SEQS": "1",
            "FOLIO_NUM_THREADS": "1",
            "FOLIO_DRAIN_TIMEOUT_S": "60",
        },
    )
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.wait(10)
    process.stderr.close()


@pytest.fixture
def answer(process):
    """An answer that has begun, in the process."""
    for line in process.stderr:
        if found := re.search(r"is ready: (\S+)", line):
            break
    else:
        pytest.fail("the server did not start")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    answer = Answer(found[1])
    answer.start()
    assert answer.has_begun.wait(20)
    return answer


def test_one_ctrl_c_lets_the_answer_end(process, answer):
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    answer.join(5)
    assert answer.reasons == ["length"] * 8


@pytest.mark.parametrize(("second", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_process_at_once(process, answer, second, status):
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    sent_at = time.monotonic()
    process.send_signal(second)
    assert process.wait(10) == status
    assert time.monotonic() - sent_at < 2
    answer.join(5)
    assert len(answer.reasons) < 8
