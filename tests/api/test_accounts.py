"""Logging in: the first account, sessions, keys, users, groups, and what each may use."""

import threading
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.db.session import utc_now
from app.main import create_app
from app.wiring.accounts import make_accounts
from tests.api.test_vector_stores import LAW, LEAVE, ingest, processor  # noqa: F401 - a fixture

PASSWORD = "correct horse"
SERVICE_KEY = "the key of programs"
# what is open to all, with the reason
OPEN = {
    ("GET", "/health"),  # probes know no password
    ("GET", "/ready"),
    ("GET", "/api/openapi.json"),  # describes the program, not the data
    ("HEAD", "/api/openapi.json"),
    ("GET", "/"),  # the pages, which hold the form to log in
    ("GET", "/api/auth"),  # how one comes in
    ("POST", "/api/setup"),
    ("POST", "/api/login"),
    ("POST", "/api/logout"),
}


@pytest.fixture
def accounts(settings, services):
    settings.auth = "users"
    services.accounts = make_accounts(settings, services.records.database)
    services.setup_code = services.accounts.begin_setup()
    return services.accounts


@pytest.fixture
def app(settings, services, accounts):
    settings.api_key = SecretStr(SERVICE_KEY)
    return create_app(settings, services)


@pytest.fixture
def people(accounts):
    return {
        name: accounts.add(name, PASSWORD, "admin" if name == "ada" else "member")
        for name in ("ada", "eve", "rob", "out")
    }


@pytest.fixture
def visit(app, client):
    """Clients of their own for each user, logged in; "" is nobody."""

    def open_client(name: str) -> TestClient:
        visitor = TestClient(app)
        visitor.portal = client.portal  # the loop in which answers are made
        if name:
            answer = visitor.post("/api/login", json={"name": name, "password": PASSWORD})
            assert answer.status_code == 200, answer.text
        return visitor

    return open_client


def routes_of(app):
    """Every route with each of its methods, those of included routers too."""

    def walk(routes, prefix):
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                context = route.include_context
                yield from walk(inner.routes, prefix + context.prefix)
            elif hasattr(route, "methods"):
                yield from ((method, prefix + route.path) for method in route.methods)

    return set(walk(app.routes, ""))


def test_every_route_refuses_whoever_is_not_logged_in(app, client, people):
    known = routes_of(app)
    assert len(known) > 80
    assert known >= OPEN
    for method, path in sorted(known - OPEN):
        answer = client.request(method, path.replace("{", "").replace("}", ""))
        assert answer.status_code == 401, f"{method} {path} is open: {answer.status_code}"
        if method != "HEAD":
            assert "log in" in answer.json()["error"]["message"]


def test_openai_clients_are_refused_in_their_own_form(client, people):
    error = client.get("/v1/models").json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")


def test_first_account_is_made_once_with_the_printed_code(client, services, accounts):
    auth = client.get("/api/auth").json()
    assert auth == {"mode": "users", "needs_setup": True, "user": None}
    wanted = {"code": "AAAA-AAAA-AAAA-AAAA", "name": "Ada", "password": PASSWORD}
    assert client.post("/api/setup", json=wanted).status_code == 401
    wanted["code"] = services.setup_code.lower()
    made = client.post("/api/setup", json=wanted)
    assert (made.status_code, made.json()["role"]) == (201, "admin")
    assert client.get("/api/auth").json()["user"]["name"] == "Ada"
    assert client.get("/api/users").status_code == 200
    wanted["name"] = "Mallory"
    assert client.post("/api/setup", json=wanted).status_code == 401
    assert accounts.begin_setup() is None


def test_setup_code_of_an_earlier_start_has_ended(client, services, accounts):
    earlier = services.setup_code
    assert accounts.begin_setup() != earlier
    wanted = {"code": earlier, "name": "Ada", "password": PASSWORD}
    assert client.post("/api/setup", json=wanted).status_code == 401


def test_first_account_gets_the_chats_of_before(client, services, accounts):
    old = services.records.chats.create("Before", [])
    ada = accounts.add("ada", PASSWORD, "admin")
    assert services.records.chats.owner(old.id) == ada.id
    assert services.records.chats.owner(services.records.chats.create("Later", []).id) == ""


def test_wrong_name_and_wrong_password_are_told_apart_by_nobody(client, people):
    answers = [
        client.post("/api/login", json={"name": name, "password": "wrong password"})
        for name in ("ada", "nobody")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


def test_unknown_name_costs_the_work_of_a_hash(accounts, monkeypatch):
    verified = []
    verify = accounts._passwords._hasher.verify
    monkeypatch.setattr(
        accounts._passwords._hasher, "verify", lambda *a: verified.append(a) or verify(*a)
    )
    assert not accounts._passwords.verify("whatever it is", None)
    assert len(verified) == 1


def test_many_wrong_passwords_have_to_wait_and_the_right_one_too(client, people):
    for _ in range(10):
        answer = client.post("/api/login", json={"name": "EVE", "password": "wrong password"})
        assert answer.status_code == 401
    answer = client.post("/api/login", json={"name": "eve", "password": PASSWORD})
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "60"
    assert client.post("/api/login", json={"name": "rob", "password": PASSWORD}).status_code == 200


def test_every_spelling_of_a_name_is_counted_as_that_name(client, people):
    spellings = ["eve", "EVE", "ＥＶＥ", "ｅｖｅ", "ⓔⓥⓔ"]
    for name in spellings * 2:
        answer = client.post("/api/login", json={"name": name, "password": "wrong password"})
        assert answer.status_code == 401
    answer = client.post("/api/login", json={"name": "ⓔve", "password": PASSWORD})
    assert answer.status_code == 429


def test_cookie_is_hidden_from_scripts_and_secure_over_https(client, people):
    wanted = {"name": "Ada", "password": PASSWORD}
    plain = client.post("/api/login", json=wanted).headers["set-cookie"]
    assert "HttpOnly" in plain
    assert "SameSite=lax" in plain
    assert "Path=/" in plain
    assert "Max-Age=2592000" in plain
    assert "Secure" not in plain
    headers = {"X-Forwarded-Proto": "https"}
    behind_proxy = client.post("/api/login", json=wanted, headers=headers).headers["set-cookie"]
    assert "Secure" in behind_proxy


def test_token_itself_is_nowhere_in_the_database(visit, people, tmp_path):
    token = visit("eve").cookies["folio_session"]
    files = list(tmp_path.glob("folio.db*"))
    assert files
    assert not [file for file in files if token.encode() in file.read_bytes()]


def test_session_ends_at_logout_and_no_other(visit, people):
    first, second = visit("eve"), visit("eve")
    token = first.cookies["folio_session"]
    assert first.post("/api/logout").status_code == 204
    first.cookies.set("folio_session", token)
    assert first.get("/api/status").status_code == 401
    assert second.get("/api/status").status_code == 200


def test_session_slides_and_expires(accounts, people, monkeypatch):
    now = utc_now()
    credentials = accounts._credentials
    monkeypatch.setattr(credentials, "_clock", lambda: now)
    _, token = accounts.log_in("eve", PASSWORD, "")
    now += timedelta(days=29)
    assert accounts.by_session(token)
    now += timedelta(days=29)
    assert accounts.by_session(token).last_seen_at
    now += timedelta(days=31)
    assert accounts.by_session(token) is None


def test_another_password_ends_all_other_sessions(visit, people):
    here, there = visit("eve"), visit("eve")
    wrong = {"current_password": "wrong password", "new_password": "another horse"}
    assert here.patch("/api/me", json=wrong).status_code == 401
    right = wrong | {"current_password": PASSWORD}
    assert here.patch("/api/me", json=right).status_code == 200
    assert here.get("/api/status").status_code == 200
    assert there.get("/api/status").status_code == 401
    again = there.post("/api/login", json={"name": "eve", "password": "another horse"})
    assert again.status_code == 200


@pytest.mark.parametrize("patch", [{"is_active": False}, {"password": "given by admin"}])
def test_whoever_is_shut_out_or_given_a_password_is_logged_out(visit, people, patch):
    eve, ada = visit("eve"), visit("ada")
    assert ada.patch(f"/api/users/{people['eve'].id}", json=patch).status_code == 200
    assert eve.get("/api/status").status_code == 401


def test_key_is_shown_once_works_everywhere_and_is_taken_back(visit, client, people):
    eve = visit("eve")
    made = eve.post("/api/me/keys", json={"name": "script"}).json()
    assert made["key"].startswith("folio-")
    assert made["key"].startswith(made["prefix"])
    (listed,) = eve.get("/api/me/keys").json()
    assert "key" not in listed
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert client.get("/v1/models", headers=bearer).status_code == 200
    assert client.get("/api/auth", headers=bearer).json()["user"]["name"] == "eve"
    assert eve.get("/api/me/keys").json()[0]["last_used_at"]
    more = client.post("/api/me/keys", json={"name": "more"}, headers=bearer)
    assert more.status_code == 403
    assert eve.delete(f"/api/me/keys/{made['id']}").status_code == 204
    assert client.get("/v1/models", headers=bearer).status_code == 401


def test_key_expires_and_ends_with_its_user(accounts, people, monkeypatch):
    now = utc_now()
    monkeypatch.setattr(accounts._credentials, "_clock", lambda: now)
    _, short = accounts.make_key(people["eve"].id, "short", timedelta(days=1))
    _, long = accounts.make_key(people["eve"].id, "long", None)
    assert accounts.by_key(short)
    now += timedelta(days=2)
    assert accounts.by_key(short) is None
    assert accounts.by_key(long)
    accounts.change(people["eve"].id, None, False, None)
    assert accounts.by_key(long) is None


def test_key_of_somebody_else_is_not_found(visit, people):
    made = visit("eve").post("/api/me/keys", json={"name": "script"}).json()
    assert visit("ada").delete(f"/api/me/keys/{made['id']}").status_code == 404


def test_folio_api_key_is_an_administrators_and_nobodys(client, people):
    bearer = {"Authorization": f"Bearer {SERVICE_KEY}"}
    assert client.get("/api/users", headers=bearer).status_code == 200
    assert client.get("/metrics", headers=bearer).status_code == 200
    assert client.get("/api/me/keys", headers=bearer).status_code == 403
    assert client.get("/api/status", headers={"Authorization": "Bearer no"}).status_code == 401


def test_other_sites_cannot_use_the_cookie(visit, people):
    eve = visit("eve")
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert eve.post("/api/collections", json={"name": "x"}, headers=foreign).status_code == 403
    login = {"name": "eve", "password": PASSWORD}
    assert eve.post("/api/login", json=login, headers=foreign).status_code == 403


def test_names_of_other_sites_need_not_be_listed(app, people):
    client = TestClient(app, base_url="http://docs.example.com")
    assert client.get("/api/auth").status_code == 200
    assert client.get("/api/collections").status_code == 401


def test_last_administrator_stays_one(visit, people):
    ada = visit("ada")
    url = f"/api/users/{people['ada'].id}"
    for answer in (
        ada.patch(url, json={"role": "member"}),
        ada.patch(url, json={"is_active": False}),
        ada.delete(url),
    ):
        assert answer.status_code == 409
        assert "last active administrator" in answer.json()["error"]["message"]
    ada.patch(f"/api/users/{people['eve'].id}", json={"role": "admin"})
    assert ada.patch(url, json={"role": "member"}).status_code == 200
    assert ada.get("/api/users").status_code == 403


def test_names_are_unique_without_case(visit, people):
    ada = visit("ada")
    for path, body in (
        ("/api/users", {"name": "EVE", "password": PASSWORD, "role": "member"}),
        ("/api/groups", {"name": "Staff"}),
    ):
        answers = [ada.post(path, json=body).status_code for _ in range(2)]
        assert answers[-1] == 409
    short = {"name": "new", "password": "seven77", "role": "member"}
    assert ada.post("/api/users", json=short).status_code == 422


def test_deleted_user_leaves_knowledge_bases_to_the_administrators(visit, services, people):
    eve, ada = visit("eve"), visit("ada")
    base = eve.post("/api/collections", json={"name": "Eve's"}).json()
    chat = eve.post("/api/chats", json={}).json()
    assert ada.delete(f"/api/users/{people['eve'].id}").status_code == 204
    assert eve.get("/api/status").status_code == 401
    shared = ada.get(f"/api/collections/{base['id']}/access").json()
    assert shared == {"owner_id": None, "grants": []}
    assert services.records.chats.list("", 10) == []
    assert chat["id"]


def test_without_accounts_nothing_is_asked_and_there_are_none(settings, services):
    with TestClient(create_app(settings, services)) as client:
        services.is_settled.wait(5)
        assert client.get("/api/auth").json()["mode"] == "off"
        assert client.get("/api/collections").json()[0]["access"] == "owner"
        answer = client.post("/api/login", json={"name": "ada", "password": PASSWORD})
        assert answer.status_code == 409
        assert "FOLIO_AUTH" in answer.json()["error"]["message"]
        assert client.get("/metrics").status_code == 200


@pytest.fixture
def library(visit, people, services, processor, tmp_path):  # noqa: F811 - the fixture
    """Eve's knowledge base, which Rob reads through a group, with one searchable document."""
    eve, ada = visit("eve"), visit("ada")
    base = eve.post("/api/collections", json={"name": "Secret plans"}).json()
    group = ada.post("/api/groups", json={"name": "Readers"}).json()
    ada.patch(f"/api/groups/{group['id']}", json={"user_ids": [people["rob"].id]})
    grants = [{"kind": "group", "id": group["id"], "role": "reader"}]
    put = eve.put(
        f"/api/collections/{base['id']}/access",
        json={"owner_id": people["eve"].id, "grants": grants},
    )
    assert put.status_code == 200, put.text
    uploads = {}
    services.processor = processor
    for collection_id, name, data in (
        (base["id"], "law.md", LAW),
        ("default", "leave.md", LEAVE),
    ):
        sender = eve if collection_id != "default" else ada
        sent = sender.post(
            "/api/documents", data={"collection_id": collection_id}, files={"files": (name, data)}
        )
        assert sent.status_code == 202, sent.text
        uploads[name] = sent.json()["accepted"][0]["id"]
    ingest(processor)
    return {"base": base, "law": uploads["law.md"], "leave": uploads["leave.md"]}


READING = [
    "/api/documents/{law}",
    "/api/documents/{law}/text",
    "/api/documents/{law}/file",
    "/api/documents/{law}/chunks",
    "/v1/files/{law}",
    "/v1/files/{law}/content",
    "/v1/vector_stores/{base}",
    "/v1/vector_stores/{base}/files",
    "/v1/vector_stores/{base}/files/{law}",
    "/v1/vector_stores/{base}/files/{law}/content",
    "/v1/models/Secret plans",
]
EDITING = [
    ("PATCH", "/api/documents/{law}", {"metadata": {"a": 1}}),
    ("POST", "/api/documents/{law}/reindex", None),
    ("POST", "/api/documents/{law}/pause", None),
    ("POST", "/api/documents/{law}/cancel", None),
    ("POST", "/v1/vector_stores/{base}/files/{law}", {"attributes": {"a": 1}}),
    ("DELETE", "/v1/vector_stores/{base}/files/{law}", None),
    ("DELETE", "/v1/files/{law}", None),
    ("DELETE", "/api/documents/{law}", None),
]
OWNING = [
    ("GET", "/api/collections/{base}/access", None),
    ("PUT", "/api/collections/{base}/access", {"owner_id": None, "grants": []}),
    ("POST", "/v1/vector_stores/{base}", {"name": "Other"}),
    ("DELETE", "/v1/vector_stores/{base}", None),
    ("DELETE", "/api/collections/{base}", None),
]
ADMINISTERING = [
    ("GET", "/api/users"),
    ("GET", "/api/groups"),
    ("GET", "/api/evals"),
    ("GET", "/api/index"),
    ("POST", "/api/jobs/pause"),
    ("POST", "/api/jobs/resume"),
    ("GET", "/metrics"),
]


def filled(path, library):
    return path.format(law=library["law"], base=library["base"]["id"])


@pytest.mark.parametrize("path", READING)
def test_readers_read_and_outsiders_find_nothing(visit, library, path):
    url = filled(path, library)
    answers = {name: visit(name).get(url).status_code for name in ("ada", "eve", "rob", "out")}
    assert answers == {"ada": 200, "eve": 200, "rob": 200, "out": 404}
    absent = visit("out").get(url.replace(library["law"], "0" * 32))
    assert absent.status_code == 404


@pytest.mark.parametrize(("method", "path", "body"), EDITING)
def test_readers_change_nothing_and_editors_do(visit, library, people, method, path, body):
    url, base = filled(path, library), library["base"]["id"]
    assert visit("out").request(method, url, json=body).status_code == 404
    assert visit("rob").request(method, url, json=body).status_code == 403
    shared = visit("eve").get(f"/api/collections/{base}/access").json()
    shared["grants"].append({"kind": "user", "id": people["out"].id, "role": "editor"})
    assert visit("eve").put(f"/api/collections/{base}/access", json=shared).status_code == 200
    assert visit("out").request(method, url, json=body).is_success


@pytest.mark.parametrize(("method", "path", "body"), OWNING)
def test_only_owners_and_administrators_share_and_delete(
    visit, library, people, method, path, body
):
    url, base = filled(path, library), library["base"]["id"]
    assert visit("out").request(method, url, json=body).status_code == 404
    assert visit("rob").request(method, url, json=body).status_code == 403
    editor = [{"kind": "everyone", "id": None, "role": "editor"}]
    shared = {"owner_id": people["eve"].id, "grants": editor}
    assert visit("eve").put(f"/api/collections/{base}/access", json=shared).status_code == 200
    assert visit("rob").request(method, url, json=body).status_code == 403
    assert visit("ada").request(method, url, json=body).is_success


@pytest.mark.parametrize(("method", "path"), ADMINISTERING)
def test_members_administer_nothing(visit, people, method, path):
    assert visit("eve").request(method, path).status_code == 403
    assert visit("ada").request(method, path).status_code in (200, 503)


def test_upload_needs_an_editor(visit, library):
    def upload(name, collection_id):
        files = {"files": ("new.md", b"# New")}
        data = {"collection_id": collection_id} if collection_id else {}
        return visit(name).post("/api/documents", data=data, files=files).status_code

    base = library["base"]["id"]
    assert (upload("eve", base), upload("rob", base), upload("out", base)) == (202, 403, 404)
    assert (upload("ada", ""), upload("eve", "")) == (202, 404)


def test_lists_show_what_may_be_read(visit, library):
    shown = {}
    for name in ("ada", "eve", "rob", "out"):
        visitor = visit(name)
        bases = visitor.get("/api/collections").json()
        shown[name] = (
            {base["name"]: base["access"] for base in bases},
            visitor.get("/api/documents").json()["total"],
            visitor.get("/api/jobs").json()["total"],
            visitor.get("/api/status").json()["num_documents"],
            len(visitor.get("/v1/vector_stores").json()["data"]),
        )
    assert shown["ada"] == ({"default": "owner", "Secret plans": "owner"}, 2, 2, 2, 2)
    assert shown["eve"] == ({"Secret plans": "owner"}, 1, 1, 1, 1)
    assert shown["rob"] == ({"Secret plans": "reader"}, 1, 1, 1, 1)
    assert shown["out"] == ({}, 0, 0, 0, 0)
    models = {item["id"] for item in visit("out").get("/v1/models").json()["data"]}
    assert "Secret plans" not in models


def test_refusals_do_not_name_what_is_hidden(visit, library):
    out = visit("out")
    asked = {"model": "nope", "messages": [{"role": "user", "content": "notice period"}]}
    said = out.post("/v1/chat/completions", json=asked).text
    said += out.post("/v1/chat/completions", json=asked | {"model": "Secret plans"}).text
    assert said.count("does not exist") == 2
    assert "default" not in said.replace("Secret plans' does not", "")


def test_answers_search_only_what_may_be_read(visit, library, pipeline, people):
    base = library["base"]["id"]
    asked = {"model": "folio", "messages": [{"role": "user", "content": "notice period"}]}
    for name in ("ada", "rob", "out"):
        assert visit(name).post("/v1/chat/completions", json=asked).status_code == 200
    scopes = [question.scope.collection_ids for question in pipeline.questions]
    assert scopes == [None, (base,), ()]
    tenants = [question.tenant for question in pipeline.questions]
    assert tenants == [people[name].id for name in ("ada", "rob", "out")]


def test_jobs_take_turns_by_user(visit, library, people):
    (job,) = visit("eve").get("/api/jobs").json()["items"]
    assert job["owner"] == people["eve"].id


def test_failed_documents_are_tried_again_where_one_may_edit(visit, library, services, monkeypatch):
    asked = []
    monkeypatch.setattr(
        services.processor, "retry_failed", lambda within: asked.append(within) or 0
    )
    for name in ("ada", "eve", "rob"):
        assert visit(name).post("/api/jobs/retry").status_code == 200
    assert asked == [None, (library["base"]["id"],), ()]


def test_chats_are_their_owners_alone(visit, people, pipeline):
    eve = visit("eve")
    chat = eve.post("/api/chats", json={"title": "Mine"}).json()["id"]
    pipeline.gate = threading.Event()
    run = eve.post(f"/api/chats/{chat}/messages", json={"text": "How many days?"}).json()
    answer = run["answer"]["id"]
    service = {"Authorization": f"Bearer {SERVICE_KEY}"}
    for other, headers in ((visit("ada"), {}), (visit("out"), {}), (visit(""), service)):
        assert other.get("/api/chats", headers=headers).json() == []
        for method, url, body in (
            ("GET", f"/api/chats/{chat}", None),
            ("PATCH", f"/api/chats/{chat}", {"title": "Yours"}),
            ("POST", f"/api/chats/{chat}/messages", {"text": "And?"}),
            ("GET", f"/api/runs/{run['run_id']}/events", None),
            ("DELETE", f"/api/runs/{run['run_id']}", None),
            ("POST", f"/api/messages/{answer}/feedback", {"rating": 1}),
            ("DELETE", f"/api/chats/{chat}", None),
        ):
            refused = other.request(method, url, json=body, headers=headers)
            assert refused.status_code == 404, f"{method} {url}: {refused.text}"
    pipeline.gate.set()
    assert [item["id"] for item in eve.get("/api/chats").json()] == [chat]


def test_chat_asks_no_knowledge_base_that_is_not_shared_any_more(visit, library, people):
    rob, base = visit("rob"), library["base"]["id"]
    chat = rob.post("/api/chats", json={"collection_ids": [base]}).json()["id"]
    alone = {"owner_id": people["eve"].id, "grants": []}
    visit("eve").put(f"/api/collections/{base}/access", json=alone)
    answer = rob.post(f"/api/chats/{chat}/messages", json={"text": "notice period"})
    assert answer.status_code == 404
    out = visit("out")
    assert out.post("/api/chats", json={"collection_ids": [base]}).status_code == 404
    wanted = {"query": "notice", "collection_ids": [base]}
    assert out.post("/api/search", json=wanted).status_code == 404


def test_sent_files_are_their_senders(visit, library):
    eve, out, ada = visit("eve"), visit("out"), visit("ada")
    base = library["base"]["id"]
    sent = eve.post(
        "/v1/files", data={"purpose": "assistants"}, files={"file": ("mine.md", b"# Mine")}
    )
    file_id = sent.json()["id"]
    assert out.get("/v1/files").json()["data"] == []
    assert len(ada.get("/v1/files").json()["data"]) == 1
    for method, url in (
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files?after={file_id}"),
    ):
        assert out.request(method, url).status_code == 404
    own = out.post("/v1/vector_stores", json={"name": "Out's"}).json()["id"]
    for url, body in (
        (f"/v1/vector_stores/{own}/files", {"file_id": file_id}),
        (f"/v1/vector_stores/{own}/file_batches", {"file_ids": [file_id]}),
        ("/v1/vector_stores", {"name": "More", "file_ids": [file_id]}),
    ):
        assert out.post(url, json=body).status_code == 404
    put = eve.post(f"/v1/vector_stores/{base}/files", json={"file_id": file_id})
    assert put.status_code == 200
    assert visit("rob").delete(f"/v1/files/{file_id}").status_code == 404
    assert eve.delete(f"/v1/files/{file_id}").status_code == 200


def test_file_in_a_knowledge_base_one_may_not_change_any_more_stays(visit, library, people):
    eve, base = visit("eve"), library["base"]["id"]
    sent = eve.post(
        "/v1/files", data={"purpose": "assistants"}, files={"file": ("mine.md", b"# Mine")}
    )
    file_id = sent.json()["id"]
    eve.post(f"/v1/vector_stores/{base}/files", json={"file_id": file_id})
    given_away = {"owner_id": people["rob"].id, "grants": []}
    assert eve.put(f"/api/collections/{base}/access", json=given_away).status_code == 200
    assert eve.delete(f"/v1/files/{file_id}").status_code == 409


def test_sample_questions_and_checks_tell_members_nothing(visit, services, people):
    asked = []
    services.sample_questions = lambda within: asked.append(within) or {"en": [], "zh": []}
    status = visit("out").get("/api/status").json()
    assert asked == [()]
    assert {check["detail"] for check in status["checks"]} == {""}


def test_principals_are_for_whoever_is_logged_in(visit, people, accounts):
    accounts.change(people["eve"].id, None, False, None)
    named = visit("out").get("/api/principals").json()
    assert [user["name"] for user in named["users"]] == ["ada", "out", "rob"]


def test_nobody_can_be_shared_with_who_does_not_exist(visit, library, people):
    url = f"/api/collections/{library['base']['id']}/access"
    for grant, status in (
        ({"kind": "user", "id": "nope", "role": "reader"}, 404),
        ({"kind": "group", "id": "nope", "role": "reader"}, 404),
        ({"kind": "everyone", "id": "x", "role": "reader"}, 422),
        ({"kind": "user", "id": None, "role": "reader"}, 422),
    ):
        wanted = {"owner_id": people["eve"].id, "grants": [grant]}
        assert visit("eve").put(url, json=wanted).status_code == status
    nobody = {"owner_id": None, "grants": []}
    assert visit("eve").put(url, json=nobody).status_code == 403


def test_walk_finds_routes_of_included_routers(app):
    known = routes_of(app)
    assert ("GET", "/api/documents/{document_id}/chunks/{chunk_id}") in known
    assert ("POST", "/mcp") in known
