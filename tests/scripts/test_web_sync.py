"""Pages of a real server on loopback, kept in step with a library on real SQL and Milvus Lite."""

import json

import pytest

from app.errors import InvalidInput, UnsupportedFormat
from app.scripts.initialize_data import __main__ as command
from app.scripts.initialize_data import web
from app.scripts.initialize_data.fetching import Fetcher, Reply
from app.scripts.initialize_data.url_lists import ListedPage, read_lists
from app.scripts.initialize_data.web import by_turns, file_name
from tests.scripts.test_initialize_data import (  # noqa: F401 (fixtures)
    documents_of,
    quick,
    run,
    running_appliance,
)
from tests.scripts.web_server import Page, serve_site

LEAVE = "<html><title>Leave</title><body><h1>Leave</h1><p>Fifteen days.</p></body></html>"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("FOLIO_WEB_ALLOW_PRIVATE", "127.0.0.1")
    monkeypatch.setattr(web, "DELAY_S", 0.0)
    with serve_site() as site:
        site.put("/leave", LEAVE, etag='"1"')
        site.put("/rules.md", "# Rules\n\nSecond class.", content_type="text/plain")
        yield site


@pytest.fixture
def pages(site, tmp_path):
    """A list of the site's pages."""
    path = tmp_path / "pages.txt"
    path.write_text(f"# our handbook\n{site.url}/leave\n\n{site.url}/rules.md#top\n")
    return path


def test_pages_are_added_once_and_asked_for_by_version(run, site, pages, tmp_path):  # noqa: F811
    code, output = run("--urls", pages)
    assert (code, "added 2" in output) == (0, True)
    assert set(documents_of(tmp_path)) == {site.url + "/leave", site.url + "/rules.md"}
    code, output = run("--urls", pages)
    assert (code, "unchanged 2" in output, "added" in output) == (0, True, False)
    assert [asked.get("If-None-Match") for asked in site.asked("/leave")] == [None, '"1"']
    assert len(site.asked("/robots.txt")) == 2


def test_a_changed_page_is_indexed_again(run, site, pages):  # noqa: F811
    run("--urls", pages)
    site.put("/leave", LEAVE.replace("Fifteen", "Twenty"), etag='"2"')
    code, output = run("--urls", pages)
    assert (code, "changed 1" in output, "unchanged 1" in output) == (0, True, True)


def test_a_gone_page_is_deleted_only_when_asked(run, site, pages, tmp_path):  # noqa: F811
    run("--urls", pages)
    site.put("/leave", status=410)
    code, output = run("--urls", pages)
    assert (code, "--delete deletes its document" in output) == (0, True)
    code, output = run("--urls", pages, "--delete")
    assert (code, "deleted 1" in output) == (0, True)
    assert set(documents_of(tmp_path)) == {site.url + "/rules.md"}


def test_a_host_where_every_page_is_gone_loses_no_document(run, site, pages, tmp_path):  # noqa: F811
    run("--urls", pages)
    site.pages.clear()
    code, output = run("--urls", pages, "--delete")
    assert (code, "nothing was deleted for it" in output) == (0, True)
    assert len(documents_of(tmp_path)) == 2


def test_a_page_taken_off_the_list_is_deleted_with_its_flag(run, site, pages, tmp_path):  # noqa: F811
    run("--urls", pages)
    pages.write_text(f"{site.url}/leave\n")
    assert "no longer listed" in run("--urls", pages)[1]
    assert "deleted 1" in run("--urls", pages, "--delete")[1]
    assert set(documents_of(tmp_path)) == {site.url + "/leave"}


def test_failures_are_remembered_and_the_document_stays(run, site, pages, tmp_path):  # noqa: F811
    run("--urls", pages)
    site.put("/leave", status=403)
    code, output = run("--urls", pages)
    assert (code, "answers 403" in output, "failing since" in output) == (1, True, True)
    assert len(documents_of(tmp_path)) == 2
    stored = json.loads((tmp_path / "data" / "web-pages.json").read_text())
    since = stored["default"][site.url + "/leave"]["failing_since"]
    assert f"failing since {since}" in run("--urls", pages)[1]
    site.put("/leave", LEAVE, etag='"1"')
    assert run("--urls", pages)[0] == 0
    stored = json.loads((tmp_path / "data" / "web-pages.json").read_text())
    assert stored["default"][site.url + "/leave"]["failing_since"] == ""


def test_a_page_whose_document_was_deleted_is_fetched_in_full_again(
    run,  # noqa: F811
    site,
    pages,
    tmp_path,
):
    run("--urls", pages)
    (tmp_path / "data" / "web-pages.json").rename(tmp_path / "kept.json")
    site.pages["/rules.md"] = Page(status=410)
    run("--urls", pages, "--delete")
    (tmp_path / "kept.json").rename(tmp_path / "data" / "web-pages.json")
    site.put("/rules.md", "# Rules\n\nSecond class.", content_type="text/plain")
    assert "added 1" in run("--urls", pages)[1]


def test_nothing_reachable_has_its_own_exit_code(run, site, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        command, "Fetcher", lambda backend: Fetcher(backend, sleep=lambda seconds: None)
    )
    site.put("/robots.txt", status=500)
    code, output = run("--urls", f"{site.url}/leave")
    assert (code, "nothing of the site is fetched" in output) == (3, True)


def test_closed_pages_and_private_addresses_fail_by_name(run, site, tmp_path):  # noqa: F811
    site.put("/robots.txt", "User-agent: *\nDisallow: /leave\n")
    pages = tmp_path / "pages.txt"
    pages.write_text(f"{site.url}/leave\n{site.url}/rules.md\nhttp://[::1]:9/x\n")
    code, output = run("--urls", pages)
    assert (code, "added 1" in output, "failed 2" in output) == (1, True, True)
    assert "robots.txt asks not to fetch it" in output
    assert "::1 is at ::1, which is not a public address" in output
    assert site.asked("/leave") == []


def test_pages_are_sent_to_a_running_appliance(run, site, pages, tmp_path, monkeypatch):  # noqa: F811
    with running_appliance(tmp_path, monkeypatch) as (services, url):
        assert "added 2" in run("--urls", pages, "--url", url)[1]
        assert "unchanged 2" in run("--urls", pages, "--url", url)[1]
        documents = services.records.documents.list()[0]
    assert {(d.source, d.name) for d in documents} == {("web", "leave.html"), ("web", "rules.md")}


def test_a_dry_run_fetches_and_changes_nothing(run, site, pages, tmp_path):  # noqa: F811
    code, output = run("--urls", pages, "--dry-run")
    assert (code, f"added {site.url}/leave" in output) == (0, True)
    assert documents_of(tmp_path) == {}
    assert not (tmp_path / "data" / "web-pages.json").exists()


def test_sitemaps_are_read_through_their_index_for_their_own_site_alone(run, site, tmp_path):  # noqa: F811
    site.put(
        "/sitemap.xml",
        f"<sitemapindex xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'><sitemap>"
        f"<loc>{site.url}/part.xml</loc></sitemap></sitemapindex>",
        content_type="application/xml",
    )
    site.put(
        "/part.xml",
        f"<urlset><url><loc>{site.url}/leave</loc></url><url><loc>http://10.0.0.1/x</loc></url>"
        f"<url><loc>{site.url}/logo.gif</loc></url></urlset>",
        content_type="application/xml",
    )
    site.put("/logo.gif", b"GIF89a", content_type="image/gif")
    code, output = run("--urls", f"{site.url}/sitemap.xml")
    assert (code, "added 1" in output, "skipped 1" in output) == (0, True, True)
    assert set(documents_of(tmp_path)) == {site.url + "/leave"}


def read_nothing(url):
    raise AssertionError(f"{url} was fetched")


def test_a_list_that_is_wrong_is_named_with_its_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("http://example.com/\nftp://example.com/\n")
    with pytest.raises(InvalidInput, match=r"list\.txt, line 2: .*only http and https"):
        read_lists([str(path)], read_nothing)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_lists([str(tmp_path / "missing.txt")], read_nothing)


def test_a_local_sitemap_and_an_address_are_lists_too(tmp_path):
    path = tmp_path / "sitemap.xml"
    path.write_text("<urlset><url><loc>http://a.example/1</loc></url></urlset>")
    found = read_lists([str(path), "http://b.example/2", "http://a.example/1"], read_nothing)
    assert [(page.url, page.is_named) for page in found] == [
        ("http://a.example/1", False),
        ("http://b.example/2", True),
    ]


def test_entities_of_a_sitemap_are_not_expanded(tmp_path):
    (tmp_path / "secret").write_text("http://a.example/secret")
    path = tmp_path / "sitemap.xml"
    path.write_text(
        f"<!DOCTYPE x [<!ENTITY e SYSTEM 'file://{tmp_path}/secret'>]>"
        "<urlset><url><loc>&e;</loc></url><url><loc>http://a.example/1</loc></url></urlset>"
    )
    assert [page.url for page in read_lists([str(path)], read_nothing)] == ["http://a.example/1"]


def name_of(url, content_type):
    return file_name(Reply(url, 200, {"content-type": content_type}))


def test_names_carry_the_suffix_of_the_type():
    assert name_of("http://a.example/docs/intro?x=1", "text/html; charset=utf-8") == "intro.html"
    assert name_of("http://a.example/", "text/html") == "a.example.html"
    assert name_of("http://a.example/a.md", "text/plain") == "a.md"
    assert name_of("http://a.example/a.htm", "text/html") == "a.htm"
    assert name_of("http://a.example/a.pdf", "application/octet-stream") == "a.pdf"
    assert name_of("http://a.example/login.pdf", "text/html") == "login.pdf.html"
    assert name_of("http://a.example/x.php", "text/html") == "x.php.html"
    assert name_of("http://a.example/%2e%2e%2fetc", "text/plain") == "etc.txt"
    with pytest.raises(UnsupportedFormat, match="video/mp4"):
        name_of("http://a.example/film", "video/mp4")


def test_hosts_take_turns():
    urls = ["http://a/1", "http://a/2", "http://a/3", "http://b/1"]
    turns = by_turns([ListedPage(url, "list", True) for url in urls])
    assert [page.url for page in turns] == ["http://a/1", "http://b/1", "http://a/2", "http://a/3"]
