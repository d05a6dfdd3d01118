import threading
import time

import httpx

from tests.api.conftest import serving
from tests.api.test_chats import ask, wait_for


def test_shutdown_stores_partial_text_and_ends_open_streams_quickly(app, services, pipeline):
    pipeline.gate, pipeline.gate_at = threading.Event(), 2
    ends = []

    def read(url):
        with httpx.stream("GET", url, timeout=30) as reply:
            ends.append(reply.read().decode())

    with serving(app) as url, httpx.Client(base_url=url) as http:
        services.is_settled.wait(5)
        chat = http.post("/api/chats", json={}).json()
        run = ask(http, chat)
        readers = [
            threading.Thread(target=read, args=(f"{url}{path}",))
            for path in (f"/api/runs/{run['run_id']}/events", "/api/documents/events")
        ]
        for reader in readers:
            reader.start()
        wait_for(lambda: pipeline.questions and services.processor.callbacks)
        time.sleep(0.2)
        stopping_at = time.monotonic()
    seconds = time.monotonic() - stopping_at
    for reader in readers:
        reader.join(5)
    message = services.records.chats.get(chat["id"]).messages[-1]
    assert (message.state, message.content) == ("stopped", "Leave is fifteen days ")
    assert any("event: stopped" in text for text in ends)
    assert len(ends) == 2
    assert seconds < 4
