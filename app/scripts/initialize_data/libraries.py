"""The library that files are added to: our own, or that of a running appliance over HTTP."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
from rich.console import Console

from app.config import Settings
from app.domain import DocumentStatus
from app.errors import Conflict, InvalidInput, NotFound, Unavailable, UnsupportedFormat
from app.services import Services
from app.wiring import build_services

SOURCE = "folder"
STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 120
STARTING_TIMEOUT_S = 180
STARTING_POLL_S = 1.0
PAGE_SIZE = 200
Outcome = Literal["added", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class State:
    """Where a document stands."""

    id: str
    status: DocumentStatus
    stage: str
    progress: float
    error: str | None


class Library(Protocol):
    """The library of this process, or that of a running appliance."""

    def add(self, path: Path) -> tuple[Outcome, State]: ...
    def state(self, document_id: str) -> State: ...
    def paths(self) -> Mapping[str, str]:
        """The ids of this collection's documents that came from folders, by absolute path."""
        ...

    def delete(self, document_id: str) -> None: ...
    def close(self) -> None: ...


def open_library(settings: Settings, url: str | None, collection: str, console: Console) -> Library:
    """Our own on a data folder that is free, else that of the appliance that uses it."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    if url is None:
        try:
            return open_own(settings, build_services(settings), collection, console)
        except Conflict as error:
            url = f"http://localhost:{settings.port}"
            console.print(f"{error}\nSending the files to {url}; --url sets another address.")
    library = RemoteLibrary(url, key)
    library.connect(collection)
    return library


def open_own(
    settings: Settings, services: Services, collection: str, console: Console
) -> "OwnLibrary":
    """Load what ingestion needs, and find or make the collection."""
    # torch takes seconds to import, and sending files needs none
    from app.wiring.loading import load_ingestion  # noqa: PLC0415

    try:
        with console.status("loading the embedding model and the index"):
            load_ingestion(settings, services)
        collections = services.records.collections
        try:
            return OwnLibrary(services, collections.by_name(collection).id)
        except NotFound:
            return OwnLibrary(services, collections.create(collection).id)
    except BaseException:
        services.close(STOP_TIMEOUT_S)
        raise


class OwnLibrary:
    """Ingests in this process."""

    def __init__(self, services: Services, collection_id: str) -> None:
        self._services = services
        self._collection_id = collection_id

    def add(self, path: Path) -> tuple[Outcome, State]:
        """Raise UnsupportedFormat, or another error with the reason."""
        processor = self._services.require(self._services.processor)
        result = processor.add_file(self._collection_id, SOURCE, str(path), path.name, path)
        return result.outcome, self.state(result.document.id)

    def state(self, document_id: str) -> State:
        """Raise NotFound when somebody deleted it."""
        document = self._services.records.documents.get(document_id)
        return State(
            document.id, document.status, document.stage, document.progress, document.error
        )

    def paths(self) -> Mapping[str, str]:
        """See Library."""
        documents = self._services.records.documents
        found: dict[str, str] = {}
        page = 1
        while items := documents.list(self._collection_id, page=page, page_size=PAGE_SIZE)[0]:
            found.update((item.path, item.id) for item in items if item.source == SOURCE)
            page += 1
        return found

    def delete(self, document_id: str) -> None:
        """Delete a document with its chunks."""
        self._services.require(self._services.processor).delete(document_id)

    def close(self) -> None:
        """Stop the workers; a document in hand goes back into the queue."""
        self._services.close(STOP_TIMEOUT_S)


class RemoteLibrary:
    """Sends files to a running appliance."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self._url, headers=headers, timeout=REQUEST_TIMEOUT_S, trust_env=False
        )
        self._collection_id = ""

    def connect(self, collection: str) -> None:
        """Wait until the appliance has started, and find or make the collection."""
        self._wait_until_started()
        ids = {item["name"]: item["id"] for item in self._call("GET", "/api/collections")}
        self._collection_id = ids.get(collection) or str(
            self._call("POST", "/api/collections", json={"name": collection})["id"]
        )

    def _wait_until_started(self) -> None:
        """Raise Unavailable when the appliance cannot start, or not in time."""
        deadline = time.monotonic() + STARTING_TIMEOUT_S
        while (status := self._call("GET", "/api/status"))["phase"] == "starting":
            if time.monotonic() > deadline:
                raise Unavailable(f"Folio at {self._url} is still starting: {status['detail']}")
            time.sleep(STARTING_POLL_S)
        if status["phase"] == "failed":
            raise Unavailable(f"Folio at {self._url} could not start: {status['detail']}")

    def add(self, path: Path) -> tuple[Outcome, State]:
        """Raise UnsupportedFormat, or another error with the reason."""
        fields = {"collection_id": self._collection_id, "path": str(path)}
        try:
            fields["path"].encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the name {path.name!r} has characters that are not text: rename the file"
            ) from error
        try:
            with path.open("rb") as file:
                parts = {"files": (path.name, file)}
                reply = self._call("POST", "/api/documents", data=fields, files=parts)
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from error
        for rejected in reply["rejected"]:
            is_unsupported = rejected["error"]["code"] == UnsupportedFormat.code
            kind = UnsupportedFormat if is_unsupported else InvalidInput
            raise kind(rejected["error"]["message"])
        if reply["unchanged"]:
            return "unchanged", state_of(reply["unchanged"][0])
        document = reply["accepted"][0]
        return "changed" if document["num_chunks"] else "added", state_of(document)

    def state(self, document_id: str) -> State:
        """Raise NotFound when somebody deleted it."""
        return state_of(self._call("GET", f"/api/documents/{document_id}"))

    def paths(self) -> Mapping[str, str]:
        """See Library."""
        query = {"collection_id": self._collection_id, "page_size": PAGE_SIZE}
        found: dict[str, str] = {}
        page = 1
        while items := self._call("GET", "/api/documents", params=query | {"page": page})["items"]:
            found.update((item["path"], item["id"]) for item in items if item["source"] == SOURCE)
            page += 1
        return found

    def delete(self, document_id: str) -> None:
        """Delete a document with its chunks."""
        self._call("DELETE", f"/api/documents/{document_id}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, **request: Any) -> Any:  # Any: JSON
        """One request; Unavailable when nobody answers."""
        try:
            reply = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"no Folio answers at {self._url} ({error}): give its address with --url, or stop"
                " it to ingest without it"
            ) from error
        return body_of(reply, self._url)


def body_of(reply: httpx.Response, url: str) -> Any:  # Any: JSON
    """The JSON of a reply; its error as ours."""
    if reply.status_code == httpx.codes.NO_CONTENT:
        return None
    try:
        body = reply.json()
    except ValueError as error:
        raise Unavailable(
            f"what answers at {url} is not Folio (HTTP {reply.status_code})"
        ) from error
    if reply.is_success:
        return body
    message = body["error"]["message"] if "error" in body else f"HTTP {reply.status_code}"
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(message)
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise Unavailable(f"{url}: {message}; set FOLIO_API_KEY")
    raise InvalidInput(message) if reply.is_client_error else Unavailable(message)


def state_of(document: dict[str, Any]) -> State:  # Any: JSON
    """A document of the HTTP API."""
    return State(
        id=document["id"],
        status=DocumentStatus(document["status"]),
        stage=document["stage"],
        progress=document["progress"],
        error=document["error"],
    )
