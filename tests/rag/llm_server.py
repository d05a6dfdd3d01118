"""A small real HTTP server that speaks OpenAI's chat protocol, with the faults that servers have.

Each request takes the next behaviour of `script`, the last one for ever.
"""

import asyncio
import json
from dataclasses import dataclass, field

WORDS = ("Fifteen ", "days ", "of ", "leave ", "[1].")


@dataclass
class ChatServer:
    """`num_open` counts requests being answered; `num_gone` those whose client left."""

    script: list[str] = field(default_factory=lambda: ["complete"])
    models: list[dict] = field(default_factory=lambda: [{"id": "small", "max_model_len": 4096}])
    words: tuple[str, ...] = WORDS
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    num_open: int = 0
    num_gone: int = 0

    async def __aenter__(self):
        self._tasks = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_idle(self):
        async with asyncio.timeout(5):
            while self.num_open:  # noqa: ASYNC110  a test waits for what is counted
                await asyncio.sleep(0.005)

    async def away(self, call):
        """Run a blocking call, while this server answers it."""
        return await asyncio.to_thread(call)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        self.num_open += 1
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.num_gone += 1
        finally:
            self.num_open -= 1
            writer.close()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        self.headers.append(headers)
        if lines[0].startswith("GET"):
            return await self._send(writer, 200, {"data": self.models})
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append(body)
        behaviour = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        status, _, detail = behaviour.partition(" ")
        if status.isdigit():
            return await self._send(writer, int(status), {"error": {"message": detail}})
        return await getattr(self, f"_{behaviour}")(reader, writer, body)

    async def _send(self, writer, status, body):
        data = json.dumps(body).encode()
        retry = "Retry-After: 0.1\r\n" if status in (429, 503) else ""
        length = f"Content-Length: {len(data)}\r\n"
        head = f"HTTP/1.1 {status} X\r\n{length}{retry}Connection: close\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def _begin(self, writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()

    async def _event(self, writer, text):
        data = f"{text}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()

    async def _word(self, writer, word):
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        await self._event(writer, f"data: {json.dumps({'choices': [choice]})}")

    async def _answer_with(self, writer, words, reason):
        await self._begin(writer)
        await self._event(writer, ": hello")
        for word in words:
            await self._word(writer, word)
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        await self._event(writer, f"data: {json.dumps(last)}")
        usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": len(words)}}
        await self._event(writer, f"data: {json.dumps(usage)}")
        await self._event(writer, "data: [DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _complete(self, reader, writer, body):
        words = self.words[: body["max_tokens"]]
        await self._answer_with(
            writer, words, "stop" if len(words) == len(self.words) else "length"
        )

    async def _cut_before(self, reader, writer, body):
        await self._begin(writer)

    async def _cut_within(self, reader, writer, body):
        await self._begin(writer)
        await self._word(writer, "Fifteen ")

    async def _cut_without_reason(self, reader, writer, body):
        await self._begin(writer)
        await self._word(writer, "Fifteen ")
        await self._event(writer, "data: [DONE]")
        writer.write(b"0\r\n\r\n")

    async def _silent(self, reader, writer, body):
        await reader.read()

    async def _pings(self, reader, writer, body):
        await self._begin(writer)
        while True:
            await self._event(writer, ": ping")
            await asyncio.sleep(0.02)

    async def _nonsense(self, reader, writer, body):
        await self._begin(writer)
        await self._event(writer, "data: {nonsense")

    async def _fails_within(self, reader, writer, body):
        await self._begin(writer)
        await self._event(writer, 'data: {"error": {"message": "out of memory"}}')

    async def _endless(self, reader, writer, body):
        await self._begin(writer)
        leaving = asyncio.ensure_future(reader.read())
        while not leaving.done():
            await self._word(writer, "word ")
            await asyncio.sleep(0.005)
        self.num_gone += 1
