"""Serving the built frontend, or a page that says how to build it."""

from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Folio</title>
<body style="font:16px/1.6 system-ui;max-width:40em;margin:4em auto;padding:0 1em">
<h1>Folio is running, its pages are not built</h1>
<p>Run <code>./scripts/build-frontend</code> in the project folder, then restart and reload.
The API works already: <a href="api/status">/api/status</a>,
<a href="api/openapi.json">/api/openapi.json</a>, and <code>/v1</code> for OpenAI clients.</p>
<h1 lang="zh">Folio 已在运行，但页面尚未构建</h1>
<p lang="zh">请在项目目录中运行 <code>./scripts/build-frontend</code>，重新启动后刷新本页。
API 已可使用。</p>
"""


class Frontend(StaticFiles):
    """The built files: hashed assets are kept for ever, everything else is asked for again."""

    def file_response(
        self,
        full_path: PathLike[str] | str,
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        is_hashed = scope["path"].startswith("/assets/")
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if is_hashed else "no-cache"
        )
        return response


def mount_frontend(app: FastAPI, folder: Path) -> None:
    """Serve the frontend at /; mount it last, it takes every path that is left."""
    if (folder / "index.html").is_file():
        app.mount("/", Frontend(directory=folder, html=True), name="frontend")
        return

    @app.get("/", include_in_schema=False)
    async def not_built() -> HTMLResponse:
        return HTMLResponse(NOT_BUILT)
