"""A library that changes nothing and tells what would change."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from rich.console import Console

from app.config import Settings
from app.domain import DocumentStatus
from app.errors import Conflict, InvalidInput, NotFound, TooLarge, UnsupportedFormat
from app.rag.parsers.formats import HEAD_BYTES, READABLE, UNKNOWN, media_type_of
from app.scripts.initialize_data.files import FoundFile
from app.scripts.initialize_data.libraries import (
    FOLDER,
    STOP_TIMEOUT_S,
    WEB,
    Known,
    Outcome,
    RemoteLibrary,
    State,
    known_in,
    local_address,
)
from app.scripts.initialize_data.sync import hash_of
from app.wiring.appliance import build_services

NOTHING: Mapping[str, Known] = {}


class DryLibrary:
    """Stands in for the library whose documents `known` holds, by source and path."""

    def __init__(self, known: Mapping[str, Mapping[str, Known]], max_bytes: int) -> None:
        self._known = {source: dict(documents) for source, documents in known.items()}
        self._max_bytes = max_bytes

    def add(self, file: FoundFile) -> tuple[Outcome, State]:
        """What adding would do, without reading the file's text: that it fails is not known."""
        self._require_readable(file.path)
        state = State(file.place, DocumentStatus.READY, "done", 1.0, None)
        known = self._known.get(WEB if file.url else FOLDER, {}).get(file.place)
        if known is None:
            return "added", state
        return ("unchanged" if hash_of(file.path) == known.content_hash else "changed"), state

    def _require_readable(self, path: Path) -> None:
        try:
            num_bytes = path.stat().st_size
            with path.open("rb") as content:
                media_type = media_type_of(path.name, content.read(HEAD_BYTES))
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from error
        if num_bytes > self._max_bytes:
            raise TooLarge(f"{path.name} is larger than {self._max_bytes / 1e6:.0f} MB")
        if media_type == UNKNOWN:
            raise UnsupportedFormat(f"“{path.name}” cannot be read: {READABLE} can")

    def state(self, document_id: str) -> State:
        """Never asked: what `add` returns is final."""
        raise NotFound(document_id)

    def known(self, source: str) -> Mapping[str, Known]:
        """See Library."""
        return dict(self._known.get(source, {}))

    def move(self, document_id: str, path: str) -> None:
        """Let the document be known by its new path, here alone."""
        documents = self._known[FOLDER]
        old = next(place for place, known in documents.items() if known.id == document_id)
        documents[path] = documents.pop(old)

    def delete(self, document_id: str) -> None:
        """Delete nothing."""

    def close(self) -> None:
        """Nothing is open."""


def open_dry(settings: Settings, url: str | None, collection: str, console: Console) -> DryLibrary:
    """What our own data folder holds where it is free, else the appliance that uses it."""
    max_bytes = settings.max_upload_mb * 1_000_000
    if url is None:
        try:
            return DryLibrary(_own_documents(settings, collection), max_bytes)
        except Conflict as error:
            url = local_address(settings)
            console.print(f"{error}\nAsking {url}; --url sets another address.")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    with closing(RemoteLibrary(url, key)) as remote:
        is_there = remote.find(collection)
        known = {source: remote.known(source) if is_there else NOTHING for source in (FOLDER, WEB)}
    return DryLibrary(known, max_bytes)


def _own_documents(settings: Settings, collection: str) -> dict[str, Mapping[str, Known]]:
    services = build_services(settings)
    try:
        collection_id = services.records.collections.by_name(collection).id
        return {source: known_in(services, collection_id, source) for source in (FOLDER, WEB)}
    except NotFound:
        return {}
    finally:
        services.close(STOP_TIMEOUT_S)
