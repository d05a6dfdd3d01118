"""The library that files are added to: our own, or that of a running appliance over HTTP."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import httpx
from rich.console import Console

from app.config import Settings
from app.domain import DocumentStatus, IndexSpec
from app.errors import Conflict, InvalidInput, NotFound, Unavailable, UnsupportedFormat
from app.rag.document_processor import ReadElsewhere
from app.scripts.initialize_data.files import FoundFile
from app.services import Services
from app.wiring.appliance import build_services

FOLDER, WEB = "folder", "web"
STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 120
STARTING_TIMEOUT_S = 180
STARTING_POLL_S = 1.0
PAGE_SIZE = 200
Outcome = Literal["added", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Known:
    """A document that came from a folder or the web: its newest file by its bytes."""

    id: str
    content_hash: str
    num_bytes: int
    has_failed: bool = False


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

    def add(self, file: FoundFile) -> tuple[Outcome, State]: ...
    def state(self, document_id: str) -> State: ...
    def known(self, source: str) -> Mapping[str, Known]:
        """This collection's documents from a source, by absolute path or address."""
        ...

    def move(self, document_id: str, path: str) -> None: ...
    def delete(self, document_id: str) -> None: ...
    def close(self) -> None: ...


def open_library(settings: Settings, url: str | None, collection: str, console: Console) -> Library:
    """Our own on a data folder that is free, else that of the appliance that uses it."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    if url is None:
        try:
            return open_own(settings, build_services(settings), collection, console)
        except Conflict as error:
            url = local_address(settings)
            console.print(f"{error}\nSending the files to {url}; --url sets another address.")
    library = RemoteLibrary(url, key)
    library.connect(collection)
    return library


def open_with_ray(
    address: str | None, settings: Settings, url: str | None, collection: str, console: Console
) -> Library:
    """Our own, whose documents are read on a Ray cluster; it must not be in use."""
    from app.scripts.initialize_data.ray_readers import connect  # noqa: PLC0415  loads torch

    if url is not None:
        raise InvalidInput("--engine ray writes to the library itself: leave --url out")
    readers = connect(address)
    try:
        settings = settings.model_copy(update={"ingest_workers": readers.num_readers + 1})
        services = build_services(settings)
        services.closing.callback(readers.close)

        def elsewhere(spec: IndexSpec) -> ReadElsewhere:
            readers.start(settings, spec)
            return readers.read

        return open_own(settings, services, collection, console, elsewhere)
    except BaseException:
        readers.close()
        raise


def local_address(settings: Settings) -> str:
    """Where the appliance of these settings answers on this machine."""
    return f"http://localhost:{settings.port}"


def open_own(
    settings: Settings,
    services: Services,
    collection: str,
    console: Console,
    elsewhere: Callable[[IndexSpec], ReadElsewhere] | None = None,
) -> "OwnLibrary":
    """Load what ingestion needs, and find or make the collection."""
    # torch takes seconds to import, and sending files needs none
    from app.wiring.loading import load_ingestion  # noqa: PLC0415

    try:
        with console.status("loading the embedding model and the index"):
            load_ingestion(settings, services, elsewhere)
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

    def add(self, file: FoundFile) -> tuple[Outcome, State]:
        """Raise UnsupportedFormat, or another error with the reason."""
        processor = self._services.require_processor()
        source = WEB if file.url else FOLDER
        name, path = file.path.name, file.path
        result = processor.add_file(self._collection_id, source, file.place, name, path)
        return result.outcome, self.state(result.document.id)

    def state(self, document_id: str) -> State:
        """Raise NotFound when somebody deleted it."""
        document = self._services.records.documents.get(document_id)
        return State(
            document.id, document.status, document.stage, document.progress, document.error
        )

    def known(self, source: str) -> Mapping[str, Known]:
        """See Library."""
        return known_in(self._services, self._collection_id, source)

    def move(self, document_id: str, path: str) -> None:
        """Raise Conflict where another document has that path."""
        self._services.require_processor().move(document_id, path)

    def delete(self, document_id: str) -> None:
        """Delete a document with its chunks."""
        self._services.require_processor().delete(document_id)

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
        if not self.find(collection):
            made = self._call("POST", "/api/collections", json={"name": collection})
            self._collection_id = str(made["id"])

    def find(self, collection: str) -> bool:
        """Wait until the appliance has started; whether it has the collection."""
        self._wait_until_started()
        ids = {item["name"]: item["id"] for item in self._call("GET", "/api/collections")}
        self._collection_id = ids.get(collection, "")
        return collection in ids

    def _wait_until_started(self) -> None:
        """Raise Unavailable when the appliance cannot start, or not in time."""
        deadline = time.monotonic() + STARTING_TIMEOUT_S
        while (status := self._call("GET", "/api/status"))["phase"] == "starting":
            if time.monotonic() > deadline:
                raise Unavailable(f"Folio at {self._url} is still starting: {status['detail']}")
            time.sleep(STARTING_POLL_S)
        if status["phase"] == "failed":
            raise Unavailable(f"Folio at {self._url} could not start: {status['detail']}")

    def add(self, file: FoundFile) -> tuple[Outcome, State]:
        """Raise UnsupportedFormat, or another error with the reason."""
        path = file.path
        fields = {"collection_id": self._collection_id, "path": file.place}
        try:
            fields["path"].encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the name {path.name!r} has characters that are not text: rename the file"
            ) from error
        try:
            with path.open("rb") as content:
                parts = {"files": (path.name, content)}
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

    def known(self, source: str) -> Mapping[str, Known]:
        """See Library."""
        query = {"collection_id": self._collection_id, "page_size": PAGE_SIZE}
        found: dict[str, Known] = {}
        page = 1
        while items := self._call("GET", "/api/documents", params=query | {"page": page})["items"]:
            found.update(
                (item["path"], known_of(item)) for item in items if item["source"] == source
            )
            page += 1
        return found

    def move(self, document_id: str, path: str) -> None:
        """Raise InvalidInput where another document has that path."""
        self._call("PATCH", f"/api/documents/{document_id}", json={"path": path})

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


def known_in(services: Services, collection_id: str, source: str) -> dict[str, Known]:
    """The documents of a collection from a source, by path."""
    documents = services.records.documents
    found: dict[str, Known] = {}
    page = 1
    while items := documents.list(collection_id, page=page, page_size=PAGE_SIZE)[0]:
        for item in items:
            if item.source == source:
                has_failed = item.status == DocumentStatus.FAILED
                found[item.path] = Known(item.id, item.content_hash, item.num_bytes, has_failed)
        page += 1
    return found


def known_of(document: dict[str, Any]) -> Known:  # Any: JSON
    """A document of the HTTP API by its bytes."""
    has_failed = document["status"] == DocumentStatus.FAILED
    return Known(document["id"], document["content_hash"], document["num_bytes"], has_failed)


def state_of(document: dict[str, Any]) -> State:  # Any: JSON
    """A document of the HTTP API."""
    return State(
        id=document["id"],
        status=DocumentStatus(document["status"]),
        stage=document["stage"],
        progress=document["progress"],
        error=document["error"],
    )
