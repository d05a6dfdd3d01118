"""What holds for every route: errors, keys, limits, headers, probes, metrics, frontend."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app import errors
from app.api.errors import STATUS
from app.domain import GeneratorInfo
from app.errors import GeneratorUnavailable, StoreUnavailable
from app.main import create_app, create_routes
from app.services import Services

SNAPSHOT = Path(__file__).parent.parent / "snapshots" / "openapi.json"


def test_openapi_document_is_the_kept_one():
    assert create_routes().openapi() == json.loads(SNAPSHOT.read_text()), (
        "where the change is meant: python -m app openapi > tests/snapshots/openapi.json"
    )


def test_health_needs_nothing_and_ready_gives_reasons(client):
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert {c["name"] for c in ready.json()["checks"]} == {
        "database",
        "embedder",
        "vector store",
        "generator",
    }


def test_ready_is_503_while_a_dependency_fails(client, services, monkeypatch):
    def fail():
        raise StoreUnavailable("Milvus at http://milvus:19530 does not answer")

    monkeypatch.setattr(services.store, "check", fail)
    ready = client.get("/ready")
    assert ready.status_code == 503
    (failed,) = [c for c in ready.json()["checks"] if not c["is_ok"]]
    assert failed == {
        "name": "vector store",
        "is_ok": False,
        "detail": "Milvus at http://milvus:19530 does not answer",
    }


def test_checks_are_shared_between_requests_for_a_while(client, services, monkeypatch):
    num_asked = 0

    def check():
        nonlocal num_asked
        num_asked += 1
        time.sleep(0.05)
        return "slow store"

    monkeypatch.setattr(services.store, "check", check)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(services.checks) for _ in range(4)]
    assert len({id(future.result()) for future in asked}) == 1
    assert client.get("/ready").status_code == 200
    assert num_asked == 1
    services.report("ready", "the model has changed")
    assert client.get("/api/status").json()["checks"]
    assert num_asked == 2
    monkeypatch.setattr("app.services.CHECKS_HOLD_S", -1)
    services.report("ready", "again")
    for _ in range(2):
        client.get("/ready")
    assert num_asked == 4


def test_remote_generator_is_asked_now_and_then_whether_it_answers(client, services):
    class Away:
        info = GeneratorInfo("openai", "remote")
        num_asked = 0

        def discover(self):
            self.num_asked += 1
            raise GeneratorUnavailable("http://llm/v1 does not answer")

    services.generator = Away()
    for _ in range(2):
        ready = client.get("/ready")
        assert ready.status_code == 503
        (failed,) = [c for c in ready.json()["checks"] if not c["is_ok"]]
        assert failed["detail"] == "http://llm/v1 does not answer"
    assert services.generator.num_asked == 1


def test_while_starting_status_tells_the_phase_and_the_rest_says_503(settings, services):
    services.load = lambda services: services.report("starting", "loading the embedding model")
    with TestClient(create_app(settings, services)) as client:
        services.is_settled.wait(5)
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        status = client.get("/api/status").json()
        assert (status["phase"], status["detail"]) == ("starting", "loading the embedding model")
        reply = client.post("/api/search", json={"query": "x"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        assert reply.json()["error"]["code"] == "starting"
        assert "loading the embedding model" in reply.json()["error"]["message"]


def test_failed_start_is_told(settings, services):
    def load(services: Services) -> None:
        raise StoreUnavailable("no Milvus at http://nowhere")

    services.load = load
    with TestClient(create_app(settings, services)) as client:
        services.is_settled.wait(5)
        status = client.get("/api/status").json()
        assert (status["phase"], status["detail"]) == ("failed", "no Milvus at http://nowhere")


def test_status_tells_what_the_ui_needs(client):
    status = client.get("/api/status").json()
    assert status["phase"] == "ready"
    assert status["generator"] == {"kind": "openai", "model": "fake", "note": ""}
    assert status["embedder"]["dimension"] == 64
    assert status["max_upload_bytes"] == 1000
    assert ".pdf" in status["upload_suffixes"]
    assert status["sample_questions"]["en"] == ["What is leave?"]


def test_search_gives_hits_with_scores(client):
    found = client.post("/api/search", json={"query": "fifteen days", "limit": 1}).json()
    assert [hit["text"] for hit in found["hits"]] == ["fifteen days of leave"]
    assert (found["hits"][0]["number"], found["is_sufficient"]) == (1, True)
    assert set(found["hits"][0]["scores"]) == {"dense", "lexical", "rerank"}
    assert set(found["timings"]) == {
        *("embed_s", "dense_s", "lexical_s", "rank_s", "rerank_s", "total_s")
    }


def test_search_that_takes_too_long_says_so(client, services, monkeypatch):
    error = StoreUnavailable("the search took longer than 20 s")
    monkeypatch.setattr(services.retriever, "error", error)
    reply = client.post("/api/search", json={"query": "x"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    assert reply.json()["error"]["code"] == "store_unavailable"
    assert "longer than 20 s" in reply.json()["error"]["message"]


def test_every_error_of_ours_has_a_status():
    own = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in own if issubclass(kind, errors.FolioError)}
    assert codes - STATUS.keys() == {"internal", "lease_lost"}  # never reach a client


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("PUT", "/api/status", None, 405, "method_not_allowed"),
        ("POST", "/api/search", {"query": ""}, 422, "invalid_input"),
        ("POST", "/api/search", {"query": "x", "limt": 3}, 422, "invalid_input"),
        ("GET", "/api/documents?page=0", None, 422, "invalid_input"),
        ("POST", "/api/chats", ["not", "a", "chat"], 422, "invalid_input"),
        ("POST", "/api/chats", {"collection_ids": ["nope"]}, 404, "not_found"),
        ("POST", "/api/search", {"query": "x", "collection_ids": ["nope"]}, 404, "not_found"),
    ],
)
def test_errors_have_our_envelope(client, method, path, body, status, code):
    reply = client.request(method, path, json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_validation_error_names_the_field(client):
    reply = client.post("/api/search", json={"query": "x", "limit": 1000})
    assert reply.json()["error"]["message"].startswith("body.limit: ")


def test_unexpected_failure_is_a_500_without_details(app, services, monkeypatch):
    def fail(*args):
        raise RuntimeError("secret detail")

    with TestClient(app, raise_server_exceptions=False) as client:
        services.is_settled.wait(5)
        monkeypatch.setattr(services.retriever, "retrieve", fail)
        reply = client.post("/api/search", json={"query": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "secret detail" not in reply.text


def test_body_over_the_limit_is_refused(client):
    reply = client.post("/api/search", json={"query": "x" * 5_000_000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_body_over_the_limit_is_refused_while_it_is_read_where_its_length_is_not_told(client):
    pieces = (b"x" * 100_000 for _ in range(50))
    reply = client.post("/api/search", content=pieces)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


@pytest.fixture
def keyed(settings, services):
    settings.api_key = SecretStr("geheim")
    with TestClient(create_app(settings, services)) as client:
        services.is_settled.wait(5)
        yield client


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic geheim", "Bearer ", "geheim"])
@pytest.mark.parametrize("path", ["/api/status", "/v1/models"])
def test_api_key_is_needed_where_it_is_set(keyed, path, header):
    reply = keyed.get(path, headers={"Authorization": header} if header else None)
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_right_api_key_lets_in_and_probes_need_none(keyed):
    assert keyed.get("/api/status", headers={"Authorization": "bearer geheim"}).status_code == 200
    assert keyed.get("/health").status_code == 200
    assert keyed.get("/metrics").status_code == 200


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403)])
def test_changes_asked_for_by_other_sites_are_refused(client, site, status):
    reply = client.post("/api/chats", json={}, headers={"Sec-Fetch-Site": site})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, "forbidden")
    assert client.get("/api/chats").json() == []


def test_own_pages_and_programs_may_change(client):
    headers = {"Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/chats", json={}, headers=headers).status_code == 201
    assert client.post("/api/chats", json={}).status_code == 201


def test_no_other_origin_may_read(client):
    headers = {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in client.get("/api/status", headers=headers).headers


def test_requests_are_counted_by_route_and_scanners_add_no_labels(client):
    client.get("/api/documents/some-id-123")
    client.get("/wp-login.php")
    metrics = client.get("/metrics").text
    assert (
        'folio_http_requests_total{method="GET",route="/api/documents/{document_id}",status="404"}'
        in metrics
    )
    assert "some-id-123" not in metrics
    assert "wp-login" not in metrics


def test_metrics_tell_of_the_library_and_of_what_it_needs(client, services, monkeypatch):
    metrics = client.get("/metrics").text
    assert 'folio_dependency_up{dependency="vector_store"} 1.0' in metrics
    assert 'folio_documents{status="ready"} 0.0' in metrics
    assert "folio_answers_open 0.0" in metrics

    def fail():
        raise StoreUnavailable("Milvus at http://milvus:19530 does not answer")

    monkeypatch.setattr(services.store, "check", fail)
    services.report("ready", "ask")  # what was asked before holds no longer
    assert 'folio_dependency_up{dependency="vector_store"} 0.0' in client.get("/metrics").text


def test_frontend_is_served_with_its_headers(settings, services, tmp_path):
    settings.frontend_dir = tmp_path / "dist"
    (settings.frontend_dir / "assets").mkdir(parents=True)
    (settings.frontend_dir / "index.html").write_text("<title>Folio</title>")
    (settings.frontend_dir / "assets" / "index-abc.js").write_text("1")
    with TestClient(create_app(settings, services)) as client:
        page = client.get("/")
        assert page.text == "<title>Folio</title>"
        assert page.headers["cache-control"] == "no-cache"
        assert "script-src 'self' 'wasm-unsafe-eval'" in page.headers["content-security-policy"]
        asset = client.get("/assets/index-abc.js")
        assert "immutable" in asset.headers["cache-control"]
        assert asset.headers["content-type"].startswith("text/javascript")
        assert client.get("/api/nothing").json()["error"]["code"] == "not_found"


def test_page_without_a_frontend_says_how_to_build_it(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "./scripts/build-frontend" in page.text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "192.168.1.5:8000", "origin": "http://192.168.1.5"},
    ],
)
def test_changes_that_another_site_asks_for_are_refused(client, headers):
    refused = client.post("/api/search", json={"query": "leave"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "https://outer.example"},
        {"host": "192.168.1.5:8000", "origin": "http://192.168.1.5:8000"},
        {"host": "folio:8000", "origin": "http://proxy", "x-forwarded-host": "proxy"},
    ],
)
def test_changes_that_our_own_pages_ask_for_are_made(client, headers):
    assert client.post("/api/search", json={"query": "leave"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST:8000", 200),
        ("folio.localhost", 200),
        ("nas:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_without_a_key_a_name_that_another_site_may_own_is_refused(client, host, status):
    assert client.get("/api/collections", headers={"host": host}).status_code == status


def test_an_allowed_name_is_let_in(settings, services):
    named = settings.model_copy(update={"allowed_hosts": " Docs.example.com, other.example"})
    with TestClient(create_app(named, services), base_url="http://docs.example.com") as client:
        assert client.get("/api/collections").status_code == 200


def test_the_openapi_document_is_served_beside_the_api(client):
    assert client.get("/api/openapi.json").json() == json.loads(SNAPSHOT.read_text())


def test_unknown_methods_share_one_label(client):
    client.request("XQZ7", "/api/status")
    metrics = client.get("/metrics").text
    assert 'method="other"' in metrics
    assert "XQZ7" not in metrics


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/collections", {"name": " "}),
        ("/api/search", {"query": "\t\n"}),
    ],
)
def test_blanks_are_no_text(client, path, body):
    assert client.post(path, json=body).status_code == 422


def test_a_blank_is_no_question(client):
    chat = client.post("/api/chats", json={}).json()
    reply = client.post(f"/api/chats/{chat['id']}/messages", json={"text": "  "})
    assert reply.status_code == 422
