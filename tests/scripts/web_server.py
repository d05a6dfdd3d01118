"""A small site on loopback for tests: pages by path, and the requests that it was asked."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What a path answers; `etag` makes it answer 304 to whoever has that version."""

    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""


class Site:
    """Pages by path; `requests` holds (path, headers) in order."""

    def __init__(self, url):
        self.url = url
        self.pages = {}
        self.requests = []

    def put(self, path, body="", **options):
        """Serve a page and return its address."""
        self.pages[path] = Page(body.encode() if isinstance(body, str) else body, **options)
        return self.url + path

    def asked(self, path):
        return [headers for asked, headers in self.requests if asked == path]


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are part of the tests."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serve_site(host="127.0.0.1"):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            site.requests.append((self.path, dict(self.headers)))
            page = site.pages.get(self.path, Page(b"nothing here", status=404))
            if callable(page):
                page = page()
            status, body = page.status, page.body
            if page.etag and self.headers.get("If-None-Match") == page.etag:
                status, body = 304, b""
            self.send_response(status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(body)))
            if page.etag:
                self.send_header("ETag", page.etag)
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = QuietServer((host, 0), Handler)
    site = Site(f"http://{host}:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
