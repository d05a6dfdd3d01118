import hashlib
import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.engine.errors import OutOfMemory
from app.errors import GeneratorUnavailable
from app.rag.lexical import terms
from app.rag.llm import DEFAULT_MODEL, ModelChoice, hub, resolve_generator
from app.rag.llm.hub import missing_files
from app.rag.llm.reader import ReaderWeights
from app.rag.replies import REFUSAL

FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"w" * 300_000,
    "pytorch_model.bin": b"not wanted",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeLLM:
    max_model_len = 2048


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "my-model"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


class HubHandler(BaseHTTPRequestHandler):
    """The three calls of the hub that a download makes; `delay_s` between pieces of the weights."""

    delay_s = 0.0
    files = FILES

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def _answer(self, with_body):
        path = self.path.split("?")[0]
        if "/tree/" in path:
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in self.files.items()
            ]
            return self._send(json.dumps(tree).encode(), {}, with_body)
        if path.startswith("/api/models/"):
            files = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            info = {"id": DEFAULT_MODEL, "sha": COMMIT, "siblings": files}
            return self._send(json.dumps(info).encode(), {}, with_body)
        data = self.files.get(path.rsplit("/", 1)[-1])
        if data is None:
            return self.send_error(404)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(data, headers, with_body)

    def _send(self, data, headers, with_body):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(data) if with_body else 0, 100_000):
            self.wfile.write(data[start : start + 100_000])
            time.sleep(self.delay_s)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub_server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent_hub():
    """It accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def resolve(tmp_path, model="auto", load=lambda folder, name: FakeLLM(), **choice):
    told = []
    defaults = {"cache_dir": tmp_path / "cache", "hub_endpoint": "http://127.0.0.1:9"}
    generator = resolve_generator(
        ModelChoice(model=model, **{**defaults, **choice}),
        terms=terms,
        refusals=REFUSAL,
        on_progress=told.append,
        load=load,
    )
    return generator, told


def test_extractive_is_forced_by_name(tmp_path):
    generator, _ = resolve(tmp_path, "extractive")
    assert generator.info.kind == "extractive"
    assert "LLM_MODEL=extractive" in generator.info.note


def test_a_server_that_was_set_goes_before_everything(tmp_path):
    generator, _ = resolve(tmp_path, base_url="http://127.0.0.1:9/v1")
    assert (generator.info.kind, generator.info.model) == ("openai", "auto")


def test_a_local_folder_is_loaded_into_the_engine(tmp_path, folder):
    generator, told = resolve(tmp_path, str(folder))
    assert (generator.info.kind, generator.info.model) == ("engine", str(folder))
    assert told == [f"loading {folder}"]


def test_a_downloaded_model_is_found_again_without_the_hub(tmp_path, hub_server):
    _, told = resolve(tmp_path, hub_endpoint=hub_server, hub_timeout_s=20)
    assert f"asking {hub_server} for {DEFAULT_MODEL}" in told
    again, told = resolve(tmp_path)
    assert (again.info.kind, again.info.model) == ("engine", DEFAULT_MODEL)
    assert told == [f"loading {DEFAULT_MODEL}"]
    assert not list(tmp_path.glob("cache/**/pytorch_model.bin"))


def test_a_download_tells_how_far_it_is(tmp_path, hub_server, monkeypatch):
    monkeypatch.setattr(hub, "POLL_S", 0.05)
    monkeypatch.setattr(HubHandler, "delay_s", 0.3)
    _, told = resolve(tmp_path, hub_endpoint=hub_server, hub_timeout_s=20)
    assert any(text.startswith(f"downloading {DEFAULT_MODEL}: ") for text in told)


def test_a_download_that_stands_still_is_given_up(tmp_path, hub_server, monkeypatch):
    monkeypatch.setattr(hub, "POLL_S", 0.05)
    monkeypatch.setattr(hub, "STALLED_S", 0.5)
    monkeypatch.setattr(HubHandler, "delay_s", 5.0)
    generator, _ = resolve(tmp_path, hub_endpoint=hub_server, hub_timeout_s=20)
    assert generator.info.kind == "extractive"
    assert "nothing came for 0.5 s" in generator.info.note


def test_an_incomplete_cache_is_not_taken(tmp_path, hub_server):
    resolve(tmp_path, hub_endpoint=hub_server, hub_timeout_s=20)
    [weights] = tmp_path.glob("cache/**/snapshots/*/model.safetensors")
    weights.unlink()
    generator, _ = resolve(tmp_path)
    assert generator.info.kind == "extractive"


def test_a_silent_hub_does_not_hold_up_the_start(tmp_path, silent_hub):
    started = time.monotonic()
    generator, _ = resolve(tmp_path, hub_endpoint=silent_hub, hub_timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert generator.info.kind == "extractive"
    assert "did not answer within 0.5 s" in generator.info.note
    assert "set LLM_MODEL to the folder" in generator.info.note


def test_without_a_network_quotes_answer_and_say_how_to_get_more(tmp_path):
    generator, _ = resolve(tmp_path)
    assert generator.info.kind == "extractive"
    assert DEFAULT_MODEL in generator.info.note


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "neither a folder here nor a name"),
        ("gpt-4", "neither a folder here nor a name"),
        ("owner/model", "is not on this disk, and http://127.0.0.1:9 does not give it"),
    ],
)
def test_a_named_model_that_cannot_be_had_stops_with_the_reason(tmp_path, model, words):
    with pytest.raises(GeneratorUnavailable, match=words):
        resolve(tmp_path, model)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(GeneratorUnavailable, match=r"lacks model\.safetensors"):
        resolve(tmp_path, str(folder))


def test_a_model_that_cannot_be_loaded_stops_where_named_and_quotes_where_not(tmp_path, hub_server):
    def load(folder, num_threads):
        raise OutOfMemory("it takes 2 GB, 1 GB are left")

    resolve(tmp_path, hub_endpoint=hub_server, hub_timeout_s=20)
    with pytest.raises(GeneratorUnavailable, match="cannot be loaded: it takes 2 GB"):
        resolve(tmp_path, DEFAULT_MODEL, load)
    generator, _ = resolve(tmp_path, "auto", load)
    assert "it takes 2 GB, 1 GB are left" in generator.info.note


def test_a_sharded_model_needs_every_shard(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_files(folder) == "b.safetensors"
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    assert missing_files(folder) == ""


def test_a_damaged_model_is_quoted_around(tmp_path, hub_server):
    def load(folder, num_threads):
        raise Exception("EOF while parsing")  # what the tokenizer's library raises

    generator, _ = resolve(tmp_path, "auto", load, hub_endpoint=hub_server, hub_timeout_s=20)
    assert generator.info.kind == "extractive"
    assert "EOF while parsing" in generator.info.note


def test_the_built_in_reader_answers_where_it_is_asked_for(tmp_path):
    loaded = []
    generator, _ = resolve(
        tmp_path, "reader", load=lambda folder, name: loaded.append((folder, name)) or FakeLLM()
    )
    [(folder, name)] = loaded
    assert not missing_files(folder)
    assert generator.info.kind == "reader"
    assert generator.info.model == name
    assert "quotes your documents" in generator.info.note


@pytest.mark.parametrize("is_default", [True, False])
def test_the_reader_stands_in_for_a_model_only_once_it_has_passed(
    tmp_path, monkeypatch, is_default
):
    weights = ReaderWeights(is_default, 1.0, 0.0, 0.0)
    monkeypatch.setattr(ReaderWeights, "load", lambda folder: weights)
    generator, _ = resolve(tmp_path, "auto", hub_timeout_s=0.2)
    assert generator.info.kind == ("reader" if is_default else "extractive")
