"""The library as one caller may use it: the one place where access is applied.

What may not be seen is not found, in the words for what does not exist; what may be seen but not
changed is forbidden. Its calls block.
"""

from collections.abc import Sequence

from app.api.runs import Run, Runs
from app.domain import (
    STORED_PREFIX,
    Access,
    AccessRole,
    Chat,
    ChatMessage,
    Collection,
    Document,
    MetadataFilter,
    SearchHit,
    SearchScope,
    StoredFile,
)
from app.errors import Conflict, Forbidden, NotFound
from app.services import Services

NEEDS: dict[AccessRole, str] = {
    "reader": "read",
    "editor": "change what is in",
    "owner": "share, rename or delete",
}


class Permitted:
    """Hands out what `access` allows."""

    def __init__(self, services: Services, access: Access) -> None:
        self.services = services
        self.access = access

    @property
    def owner(self) -> str:
        """Whose everything is that is made now; empty for nobody's."""
        return self.access.user_id or ""

    @property
    def visible(self) -> tuple[str, ...] | None:
        """The collections that may be seen: None for all, empty for none."""
        return self.access.collections("reader")

    def collections(self) -> list[Collection]:
        """All that may be read, the oldest first."""
        every = self.services.records.collections.list()
        return [item for item in every if self.access.may("reader", item.id)]

    def collection(self, collection_id: str, role: AccessRole = "reader") -> Collection:
        """One in which the caller has this role or more."""
        collection = self.services.records.collections.get(collection_id)
        self._require(role, collection.id, f"there is no collection {collection_id!r}")
        return collection

    def collection_named(self, name: str) -> Collection:
        """One that may be read, by its name."""
        collection = self.services.records.collections.by_name(name)
        self._require("reader", collection.id, f"there is no collection {name!r}")
        return collection

    def document(self, document_id: str, role: AccessRole = "reader") -> Document:
        """One in a collection where the caller has this role or more."""
        document = self.services.records.documents.get(document_id)
        self._require(role, document.collection_id, f"there is no document {document_id}")
        return document

    def chunk(self, document_id: str, chunk_id: str) -> SearchHit:
        """One of a document that may be read."""
        self.document(document_id)
        hit = self.services.records.chunks.hits([chunk_id]).get(chunk_id)
        if hit is None or hit.chunk.document_id != document_id:
            raise NotFound(f"document {document_id} has no chunk {chunk_id} any more")
        return hit

    def scope(self, wanted: Sequence[str], filter: MetadataFilter | None = None) -> SearchScope:
        """Where to search: in these collections, or in all that may be read where none is named."""
        for collection_id in wanted:
            self.collection(collection_id)
        return self.access.scope(wanted, filter)

    def stored_file(self, file_id: str) -> StoredFile:
        """A file that the caller sent; administrators reach those of all."""
        file = self.services.records.files.get(file_id)
        if not self.access.is_admin and file.owner_id != self.owner:
            raise NotFound(f"there is no file {file_id}")
        return file

    def deletable_file(self, file_id: str) -> None:
        """Raise unless the file, and what collections have of it, may be deleted."""
        if not file_id.startswith(STORED_PREFIX):
            self.document(file_id, "editor")
            return
        self.stored_file(file_id)
        for collection_id in self.services.records.files.collections(file_id):
            if not self.access.may("editor", collection_id):
                raise Conflict(
                    f"the file {file_id} is in a knowledge base that you may not change: ask its "
                    "owner to take it out"
                )

    def chats_owner(self) -> str | None:
        """Whose chats may be seen, for admins too; None where there are no accounts."""
        return self.access.user_id

    def chat(self, chat_id: str) -> Chat:
        """A chat of the caller's, with its messages."""
        self.require_chat(chat_id)
        return self.services.records.chats.get(chat_id)

    def require_chat(self, chat_id: str) -> None:
        """Raise NotFound where the chat is not the caller's."""
        chats = self.services.records.chats
        if self.access.user_id not in (None, chats.owner(chat_id)):
            raise NotFound(f"there is no chat {chat_id}")

    def message(self, message_id: str) -> ChatMessage:
        """A message in a chat of the caller's."""
        message = self.services.records.chats.message(message_id)
        if self.access.user_id not in (None, self.services.records.chats.owner(message.chat_id)):
            raise NotFound(f"there is no message {message_id}")
        return message

    def run(self, runs: Runs, run_id: str) -> Run:
        """An answer that is being made for the caller."""
        run = runs.get(run_id)
        if self.access.user_id not in (None, run.owner_id):
            raise runs.unknown(run_id)
        return run

    def _require(self, role: AccessRole, collection_id: str, unknown: str) -> None:
        if not self.access.may("reader", collection_id):
            raise NotFound(unknown)
        if not self.access.may(role, collection_id):
            raise Forbidden(f"you may not {NEEDS[role]} this knowledge base: ask its owner")
