"""The command line: `python -m app serve` runs the appliance, `openapi` prints its schema."""

import json
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Protocol

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console

from app import log
from app.config import Settings, example_env
from app.errors import FolioError
from app.startup import Progress
from app.user_commands import users_cli

cli = typer.Typer(add_completion=False, no_args_is_help=True, help="Folio, a RAG appliance.")
cli.add_typer(users_cli, name="users")
console = Console(stderr=True, soft_wrap=True, highlight=False)
logger = logging.getLogger("app")
CANNOT_START = 2
ENDED_BY_SIGNAL = 128  # plus the signal's number, as shells count
LOCAL_URL = "http://localhost:8000"
CLOSE_CONNECTIONS_S = 5


class Services(Protocol):
    """What a start needs to know of the services of either role."""

    progress: Progress
    setup_code: str | None
    is_settled: threading.Event
    is_stopping: threading.Event


class Server(uvicorn.Server):
    """uvicorn, but the application's work is brought to its end before connections are awaited."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, then let go of clients and work within bounded time."""
        app: Any = self.config.app
        for server in self.servers:
            server.close()
        await app.state.drain()
        await super().shutdown(sockets)
        self._captured_signals.clear()  # uvicorn would raise them again; we end with status 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the shutdown; the second ends the process where it stands.

        What was being written is taken up as after any kill. The status is the shell's for a
        signal: 130 after Ctrl-C, 143 after SIGTERM.
        """
        if self._captured_signals:
            os._exit(ENDED_BY_SIGNAL + sig)
        super().handle_exit(sig, frame)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for documents, chats and the index.")
    ] = None,
    no_manual: Annotated[
        bool, typer.Option("--no-manual", help="Do not add Folio's own manual.")
    ] = False,
    role: Annotated[
        str | None, typer.Option(help="What this process does: all, or generate.")
    ] = None,
) -> None:
    """Serve the appliance, or the engine alone, until Ctrl-C or SIGTERM."""
    options: dict[str, Any] = {"host": host, "port": port, "data_dir": data_dir, "role": role}
    given = {name: value for name, value in options.items() if value is not None}
    settings = _read_settings(given | ({"manual_dir": None} if no_manual else {}))
    log.configure(settings.log_level, settings.log_format)
    listener = _listen(settings.host, settings.port)
    try:
        app = _create_app(settings)
    except FolioError as error:
        listener.close()
        raise _cannot_start(str(error)) from error
    services: Services = app.state.services
    server = _server(app)
    url = _url(settings.host, listener.getsockname()[1])
    threading.Thread(target=_announce, args=(services, server, url), daemon=True).start()
    server.run(sockets=[listener])
    if services.progress.phase == "failed":
        raise typer.Exit(CANNOT_START)
    _say("Folio has stopped.")


@cli.command()
def settings() -> None:
    """Print every setting with its default: the contents of .env.example."""
    sys.stdout.write(example_env())


@cli.command()
def openapi(
    role: Annotated[str, typer.Option(help="Whose API: all, or generate.")] = "all",
) -> None:
    """Print the OpenAPI document of the HTTP API."""
    schema = _create_routes(role).openapi()
    sys.stdout.write(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


@cli.command()
def mcp(
    url: Annotated[str, typer.Option(help="Address of the running appliance.")] = LOCAL_URL,
) -> None:
    """Serve the Model Context Protocol on standard input and output, for agents that ask for that.

    It hands everything on to a running Folio; FOLIO_API_KEY is sent where it is set.
    """
    import anyio  # noqa: PLC0415 - a second, which the other commands need not wait

    from app.mcp_bridge import bridge  # noqa: PLC0415

    api_key = _read_settings({}).api_key
    try:
        anyio.run(bridge, url, api_key.get_secret_value() if api_key else None)
    except FolioError as error:
        raise _cannot_start(str(error)) from error


def _create_app(settings: Settings) -> FastAPI:
    if settings.role == "generate":  # needs neither Milvus nor SQL, so it does not import them
        from app.generate import create_generate_app  # noqa: PLC0415

        return create_generate_app(settings)
    from app.main import create_app  # noqa: PLC0415

    return create_app(settings)


def _create_routes(role: str) -> FastAPI:
    if role == "generate":
        from app.generate import create_generate_routes  # noqa: PLC0415

        return create_generate_routes()
    from app.main import create_routes  # noqa: PLC0415

    return create_routes()


def _read_settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise _cannot_start(f"wrong settings: {problems}") from error


def _problem(problem: ErrorDetails) -> str:
    """`FOLIO_PORT=99999: Input should be less than or equal to 65535`."""
    if not problem["loc"]:
        return problem["msg"]
    name = str(problem["loc"][0])
    shown = name if name.isupper() else f"FOLIO_{name.upper()}"
    return f"{shown}={problem['input']}: {problem['msg']}"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise _cannot_start(
            f"cannot listen on {host}:{port}: {error.strerror}. "
            "Is Folio running already? Choose another port with --port."
        ) from error


def _server(app: FastAPI) -> Server:
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=CLOSE_CONNECTIONS_S,
        )
    )


def _announce(services: Services, server: Server, url: str) -> None:
    """Say where to look as soon as a question can be asked; end where it never will be."""
    services.is_settled.wait()
    if services.progress.phase == "failed":
        _cannot_start(services.progress.detail)
        server.should_exit = True
    elif not services.is_stopping.is_set():
        _say(f"Folio is ready: {url}  (Ctrl-C stops it)")
        if services.setup_code:
            _say(f"Nobody has an account yet. Make the first one there: {services.setup_code}")


def _url(host: str, port: int) -> str:
    is_any = host in ("0.0.0.0", "::")
    shown = "localhost" if is_any or host == "127.0.0.1" else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def _cannot_start(reason: str) -> typer.Exit:
    _say(f"Folio cannot start: {reason}", logging.ERROR)
    return typer.Exit(CANNOT_START)


def _say(message: str, level: int = logging.INFO) -> None:
    """Tell the user in plain words, or as an event where the output is read by a machine."""
    if log.is_json():
        logger.log(level, message)
    else:
        console.print(message, markup=False, style="bold" if level == logging.INFO else "red")


if __name__ == "__main__":
    cli()
