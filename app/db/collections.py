"""Collections (knowledge bases)."""

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.exc import IntegrityError

from app.db.models import CollectionRow, DocumentRow
from app.db.session import Database, new_id, utc_now
from app.domain import Collection
from app.errors import Conflict, NotFound

DEFAULT_ID = "default"


class CollectionRepository:
    """Named sets of documents; the one called `default` always exists.

    `DocumentRepository.delete_collection` deletes one, with what is in it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def default(self) -> Collection:
        """Where documents go when nobody says where; id and name are "default"."""
        return self.get(DEFAULT_ID)

    def get(self, collection_id: str) -> Collection:
        """Raise NotFound for an unknown id."""
        return self._one(CollectionRow.id == collection_id, collection_id)

    def by_name(self, name: str) -> Collection:
        """Raise NotFound for an unknown name."""
        return self._one(CollectionRow.name == name, name)

    def create(self, name: str, owner_id: str | None = None) -> Collection:
        """Raise Conflict when the name is taken."""
        row = CollectionRow(id=new_id(), name=name, created_at=utc_now(), owner_id=owner_id)
        try:
            with self._database.session() as session:
                session.add(row)
        except IntegrityError as error:
            raise Conflict(f"a collection named {name!r} exists already") from error
        return collection_of(row, 0)

    def rename(self, collection_id: str, name: str) -> Collection:
        """Raise NotFound for an unknown id, Conflict when the name is taken."""
        try:
            with self._database.session() as session:
                row = session.get(CollectionRow, collection_id)
                if row is None:
                    raise NotFound(f"there is no collection {collection_id!r}")
                row.name = name
        except IntegrityError as error:
            raise Conflict(f"a collection named {name!r} exists already") from error
        return self.get(collection_id)

    def _one(self, condition: ColumnElement[bool], wanted: str) -> Collection:
        with self._database.snapshot() as session:
            row = session.execute(counted().where(condition)).one_or_none()
        if row is None:
            raise NotFound(f"there is no collection {wanted!r}")
        return collection_of(*row)

    def list(self) -> list[Collection]:
        """All, the oldest first."""
        with self._database.snapshot() as session:
            rows = session.execute(counted().order_by(CollectionRow.created_at)).all()
        return [collection_of(*row) for row in rows]


def counted() -> Select[CollectionRow, int]:
    """Collections, each with its number of documents."""
    num_documents = (
        select(func.count(DocumentRow.id))
        .where(DocumentRow.collection_id == CollectionRow.id)
        .scalar_subquery()
    )
    return select(CollectionRow, num_documents)


def collection_of(row: CollectionRow, num_documents: int) -> Collection:
    """The domain's view of a row."""
    return Collection(row.id, row.name, row.created_at, num_documents, row.owner_id)
