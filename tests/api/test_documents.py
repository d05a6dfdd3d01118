import json
from types import SimpleNamespace

import pytest


@pytest.fixture
def upload(client):
    def send(*files, **fields):
        parts = [("files", (name, data)) for name, data in files]
        return client.post("/api/documents", files=parts, data=fields)

    return send


def test_uploaded_files_are_queued_in_the_default_collection(client, upload):
    reply = upload(("a.md", b"# A"), ("b.md", b"# B"))
    assert reply.status_code == 202
    assert [d["name"] for d in reply.json()["accepted"]] == ["a.md", "b.md"]
    assert {d["collection_id"] for d in reply.json()["accepted"]} == {"default"}
    page = client.get("/api/documents").json()
    assert (page["total"], page["num_pending"]) == (2, 2)


def test_equal_file_is_unchanged_and_another_of_its_name_gets_a_number(upload):
    upload(("a.md", b"# A"))
    assert [d["name"] for d in upload(("a.md", b"# A")).json()["unchanged"]] == ["a.md"]
    assert [d["name"] for d in upload(("a.md", b"# A2")).json()["accepted"]] == ["a (2).md"]


def test_refused_files_are_named_with_the_reason_and_the_others_are_taken(upload):
    reply = upload(("big.md", b"x" * 1001), ("evil.exe", b"MZ"), ("good.md", b"ok"))
    body = reply.json()
    assert reply.status_code == 202
    assert [d["name"] for d in body["accepted"]] == ["good.md"]
    errors = {file["name"]: file["error"] for file in body["rejected"]}
    assert errors["big.md"]["code"] == "too_large"
    assert errors["evil.exe"]["code"] == "unsupported_format"
    assert ".md" in errors["evil.exe"]["message"]


def test_file_of_exactly_the_limit_is_taken(upload):
    assert len(upload(("a.md", b"x" * 1000)).json()["accepted"]) == 1


def test_nothing_of_an_upload_is_left_behind_in_the_upload_folder(upload, services):
    upload(("a.md", b"x" * 1000), ("big.md", b"x" * 5000))
    assert list(services.upload_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("../../etc/passwd.md", "etc/passwd.md"),
        ("C:\\temp\\a.md", "a.md"),
        ("folder/sub/a.md", "folder/sub/a.md"),
        ("手册.md", "手册.md"),
        ("/absolute.md", "absolute.md"),
        ("a\u202egpj.md", "agpj.md"),
        ("n" * 300 + ".md", "n" * 197 + ".md"),
    ],
)
def test_file_names_are_made_harmless(upload, sent, path):
    (document,) = upload((sent, b"text")).json()["accepted"]
    assert document["path"] == path
    assert document["name"] == path.rpartition("/")[2]


def test_files_of_equal_name_in_different_folders_are_different_documents(upload):
    reply = upload(("a/readme.md", b"one"), ("b/readme.md", b"two"))
    assert len({d["id"] for d in reply.json()["accepted"]}) == 2


def test_file_sent_from_a_folder_is_known_by_its_place_there(upload):
    (document,) = upload(("a.md", b"one"), path="/srv/handbook/a.md").json()["accepted"]
    assert (document["source"], document["path"]) == ("folder", "/srv/handbook/a.md")
    assert len(upload(("a.md", b"one")).json()["accepted"]) == 1
    assert len(upload(("a.md", b"one"), path="/srv/handbook/a.md").json()["unchanged"]) == 1


def test_place_of_a_sent_file_is_kept_as_it_is(upload):
    place = "/srv/Ha\u0308user \\ 1 /" + "n" * 240 + ".md"
    (document,) = upload(("a.md", b"one"), path=place).json()["accepted"]
    assert (document["path"], document["name"]) == (place, "n" * 240 + ".md")


def test_place_is_that_of_one_file(upload):
    reply = upload(("a.md", b"one"), ("b.md", b"two"), path="/srv/a.md")
    assert reply.status_code == 422
    assert "one file" in reply.json()["error"]["message"]


def test_upload_into_an_unknown_collection_is_not_found(upload, client):
    assert upload(("a.md", b"x"), collection_id="nope").status_code == 404
    assert client.get("/api/documents").json()["total"] == 0


def test_upload_goes_into_the_named_collection(upload, client):
    collection = client.post("/api/collections", json={"name": "Law"}).json()
    upload(("a.md", b"x"), collection_id=collection["id"])
    page = client.get("/api/documents", params={"collection_id": collection["id"]}).json()
    assert page["total"] == 1


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"files": {"file": ("a.md", b"x")}}, "'file'"),
        ({"files": {"files": ("a.md", b"x")}, "data": {"colection_id": "default"}}, "colection_id"),
        ({"files": {"collection_id": ("a.md", b"x")}}, "collection_id"),
    ],
)
def test_unknown_fields_are_refused_by_name(client, parts, named):
    reply = client.post("/api/documents", **parts)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")
    assert named in reply.json()["error"]["message"]
    assert client.get("/api/documents").json()["total"] == 0


def test_files_of_one_upload_are_limited(upload, services):
    files = [(f"{i}.md", b"x") for i in range(101)]
    reply = upload(*files)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    assert "100 files" in reply.json()["error"]["message"]
    assert list(services.upload_dir.iterdir()) == []
    assert len(upload(*files[:100]).json()["accepted"]) == 100


def test_upload_is_refused_where_it_would_fill_the_disk(upload, monkeypatch):
    free = 2**30 + 500

    def disk_usage(folder):
        return SimpleNamespace(free=free)

    monkeypatch.setattr("app.api.uploads.shutil.disk_usage", disk_usage)
    reply = upload(("a.md", b"x" * 600))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert "1.1 GB are free" in reply.json()["error"]["message"]
    free += 2000
    assert len(upload(("a.md", b"x" * 600)).json()["accepted"]) == 1


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.md"\r\n\r\ncut',
        ),
    ],
)
def test_broken_uploads_are_invalid_input(client, content_type, body):
    reply = client.post("/api/documents", content=body, headers={"content-type": content_type})
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "invalid_input"


def test_pdf_is_shown_inline_with_ranges(client, upload):
    (document,) = upload(("报告.pdf", b"%PDF-1.7 0123456789")).json()["accepted"]
    url = f"/api/documents/{document['id']}/file"
    whole = client.get(url)
    assert whole.content == b"%PDF-1.7 0123456789"
    assert whole.headers["content-type"] == "application/pdf"
    assert whole.headers["content-disposition"] == (
        "inline; filename*=utf-8''%E6%8A%A5%E5%91%8A.pdf"
    )
    part = client.get(url, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"%PDF-1.7")


@pytest.mark.parametrize("name", ["page.html", "picture.svg"])
def test_files_that_could_run_scripts_are_only_downloaded(client, upload, name):
    (document,) = upload((name, b"<script>alert(1)</script>")).json()["accepted"]
    reply = client.get(f"/api/documents/{document['id']}/file")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"].startswith("attachment;")
    assert "sandbox" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_document_can_be_read_reindexed_and_deleted(client, upload):
    (document,) = upload(("a.md", b"x")).json()["accepted"]
    url = f"/api/documents/{document['id']}"
    assert client.get(url).json()["name"] == "a.md"
    assert client.post(f"{url}/reindex").status_code == 202
    assert client.get(f"{url}/chunks").json() == {
        "items": [],
        "total": 0,
        "page": 1,
        "page_size": 50,
    }
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


@pytest.mark.parametrize("path", ["", "/file", "/text", "/chunks"])
def test_unknown_document_is_not_found_in_our_envelope(client, path):
    reply = client.get(f"/api/documents/nope{path}")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


def test_library_is_filtered_and_paged(client, upload):
    upload(*[(f"{n}.md", b"x%d" % n) for n in range(5)], ("other.txt", b"y"))
    page = client.get("/api/documents", params={"q": ".md", "page": 2, "page_size": 2}).json()
    assert (len(page["items"]), page["total"], page["page"]) == (2, 5, 2)
    assert client.get("/api/documents", params={"status": "failed"}).json()["total"] == 0


def test_collection_is_deleted_with_its_documents(client, upload):
    collection = client.post("/api/collections", json={"name": "Law"}).json()
    upload(("a.md", b"x"), collection_id=collection["id"])
    assert client.delete(f"/api/collections/{collection['id']}").status_code == 204
    assert [c["id"] for c in client.get("/api/collections").json()] == ["default"]
    assert client.get("/api/documents").json()["total"] == 0


def test_default_collection_and_taken_names_are_conflicts(client, upload):
    upload(("a.md", b"x"))
    client.post("/api/collections", json={"name": "Law"})
    assert client.post("/api/collections", json={"name": "Law"}).status_code == 409
    assert client.delete("/api/collections/default").status_code == 409
    assert client.get("/api/documents").json()["total"] == 1


def test_metadata_come_with_an_upload_and_can_be_replaced(client, upload):
    facts = '{"year": 2024, "author": "李雷", "is_draft": true}'
    (document,) = upload(("a.md", b"one"), metadata=facts).json()["accepted"]
    assert document["metadata"] == {"year": 2024, "author": "李雷", "is_draft": True}
    path = f"/api/documents/{document['id']}"
    assert client.patch(path, json={}).json()["metadata"] == document["metadata"]
    assert client.patch(path, json={"metadata": {"a": 1.5}}).json()["metadata"] == {"a": 1.5}
    assert client.get(path).json()["metadata"] == {"a": 1.5}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"a": [1]}', "metadata['a']"),
        ('{"a": NaN}', "metadata['a']"),
        ('{"": 1}', "at least 1"),
        ('{"%s": 1}' % ("k" * 65), "at most 64"),
        ('{"a": "%s"}' % ("v" * 513), "at most 512"),
        (json.dumps(dict.fromkeys(map(str, range(17)), 1)), "at most 16"),
    ],
)
def test_metadata_that_cannot_be_taken_are_refused_with_the_reason(
    client, upload, metadata, reason
):
    reply = upload(("a.md", b"one"), metadata=metadata)
    assert reply.status_code == 422
    assert reason in reply.json()["error"]["message"]
    assert client.get("/api/documents").json()["total"] == 0


def test_one_chunk_is_shown_as_a_citation_shows_it(client, upload, services):
    (document,) = upload(("a.md", b"one")).json()["accepted"]
    path = f"/api/documents/{document['id']}/chunks/nope"
    reply = client.get(path)
    assert reply.status_code == 404
    assert "no chunk nope any more" in reply.json()["error"]["message"]
