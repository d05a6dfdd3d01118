"""Who may use which knowledge base: owners, and what is shared with users, groups and everyone."""

from collections.abc import Mapping, Sequence

from sqlalchemy import and_, delete, exists, or_, select

from app.db.models import CollectionRow, DocumentRow, GrantRow, GroupRow, UserRow
from app.db.session import Database
from app.domain import AccessRole, Grant, User
from app.errors import NotFound


class GrantRepository:
    """Each call is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def roles(self, user: User) -> Mapping[str, AccessRole]:
        """A user's role in each knowledge base where there is one: the highest of several."""
        granted = select(GrantRow.collection_id, GrantRow.role).where(
            or_(
                GrantRow.kind == "everyone",
                and_(GrantRow.kind == "user", GrantRow.principal_id == user.id),
                and_(GrantRow.kind == "group", GrantRow.principal_id.in_(user.group_ids)),
            )
        )
        owned = select(CollectionRow.id).where(CollectionRow.owner_id == user.id)
        roles: dict[str, AccessRole] = {}
        with self._database.snapshot() as session:
            for collection_id, role in session.execute(granted):
                if role == "editor" or collection_id not in roles:
                    roles[collection_id] = role  # type: ignore[assignment]  # a plain string
            roles.update((collection_id, "owner") for collection_id in session.scalars(owned))
        return roles

    def of(self, collection_id: str) -> tuple[Grant, ...]:
        """What is shared of a knowledge base."""
        statement = (
            select(GrantRow)
            .where(GrantRow.collection_id == collection_id)
            .order_by(GrantRow.kind, GrantRow.principal_id)
        )
        with self._database.snapshot() as session:
            return tuple(grant_of(row) for row in session.scalars(statement))

    def share(self, collection_id: str, owner_id: str | None, grants: Sequence[Grant]) -> None:
        """Replace owner and grants; NotFound for an unknown knowledge base, user or group."""
        rows = {(grant.kind, grant.id or ""): grant.role for grant in grants}
        with self._database.session() as session:
            collection = session.get(CollectionRow, collection_id, with_for_update=True)
            if collection is None:
                raise NotFound(f"there is no collection {collection_id!r}")
            people = [owner_id, *(id for kind, id in rows if kind == "user")]
            for user_id in filter(None, people):
                if session.get(UserRow, user_id) is None:
                    raise NotFound(f"there is no user {user_id}")
            for group_id in (id for kind, id in rows if kind == "group"):
                if session.get(GroupRow, group_id) is None:
                    raise NotFound(f"there is no group {group_id}")
            collection.owner_id = owner_id
            session.execute(delete(GrantRow).where(GrantRow.collection_id == collection_id))
            for (kind, id), role in rows.items():
                session.add(
                    GrantRow(collection_id=collection_id, kind=kind, principal_id=id, role=role)
                )

    def publish(self, name: str, source: str) -> None:
        """Let everyone read the knowledge base of this name, if nothing else is in it.

        That is: no document of another source. Where there is none, nothing happens.
        """
        has_others = exists().where(
            DocumentRow.collection_id == CollectionRow.id, DocumentRow.source != source
        )
        wanted = select(CollectionRow.id).where(CollectionRow.name == name, ~has_others)
        with self._database.session() as session:
            collection_id = session.scalar(wanted)
            if collection_id and session.get(GrantRow, (collection_id, "everyone", "")) is None:
                session.add(
                    GrantRow(
                        collection_id=collection_id, kind="everyone", principal_id="", role="reader"
                    )
                )


def grant_of(row: GrantRow) -> Grant:
    """The domain's view of a row."""
    return Grant(
        row.kind,  # type: ignore[arg-type]  # the column holds nothing else
        row.principal_id or None,
        row.role,  # type: ignore[arg-type]
    )
