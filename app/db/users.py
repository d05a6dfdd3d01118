"""Users and groups: who has an account, and the rule that an administrator is always left."""

import unicodedata
from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.models import (
    ApiKeyRow,
    ChatRow,
    CollectionRow,
    GrantRow,
    GroupRow,
    InstallationRow,
    MembershipRow,
    SessionRow,
    StoredFileRow,
    UserRow,
)
from app.db.session import Database, new_id, utc_now
from app.domain import Group, Role, User
from app.errors import Conflict, NotFound

LAST_ADMIN = "{name} is the last active administrator: make another user an administrator first"


class UserRepository:
    """Each call is one transaction. Names are unique without case."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count(self) -> int:
        """How many accounts there are, whether active or not."""
        with self._database.snapshot() as session:
            return session.scalar(select(func.count(UserRow.id))) or 0

    def get(self, user_id: str) -> User:
        """Raise NotFound for an unknown id."""
        with self._database.snapshot() as session:
            return user_of(session, found(session, user_id))

    def list(self) -> list[User]:
        """All, by name."""
        with self._database.snapshot() as session:
            rows = session.scalars(select(UserRow).order_by(UserRow.name_key)).all()
            return [user_of(session, row) for row in rows]

    def by_name(self, name: str) -> tuple[User, str] | None:
        """The user of this name with the hash of the password; None where there is none."""
        with self._database.snapshot() as session:
            row = session.scalar(select(UserRow).where(UserRow.name_key == key_of(name)))
            return None if row is None else (user_of(session, row), row.password_hash)

    def create(self, name: str, password_hash: str, role: Role) -> User:
        """Raise Conflict where the name is taken."""
        with taken(f"a user named {name!r} exists already"), self._database.session() as session:
            return add_user(session, name, password_hash, role)

    def create_first(self, name: str, password_hash: str, code_hash: str) -> User | None:
        """The first administrator, who gets the chats and files of before.

        None where the code is wrong or used, or there is a user already.
        """
        with self._database.session() as session:
            used = (
                update(InstallationRow)
                .where(InstallationRow.setup_code_hash == code_hash)
                .values(setup_code_hash=None)
                .returning(InstallationRow.id)
                .execution_options(synchronize_session=False)
            )
            if session.scalar(used) is None or session.scalar(select(func.count(UserRow.id))):
                return None
            user = add_user(session, name, password_hash, "admin")
            adopt(session, user.id)
            return user

    def adopt(self, user_id: str) -> None:
        """Give a user the chats and files that belong to nobody."""
        with self._database.session() as session:
            adopt(session, user_id)

    def expect_setup(self, code_hash: str) -> None:
        """Let whoever knows this code make the first account."""
        with self._database.session() as session:
            session.execute(update(InstallationRow).values(setup_code_hash=code_hash))

    def change(
        self,
        user_id: str,
        role: Role | None = None,
        is_active: bool | None = None,
        password_hash: str | None = None,
    ) -> User:
        """Change what is not None; Conflict for the last active administrator."""
        with self._database.session() as session:
            admins = lock_admins(session)
            row = found(session, user_id)
            if role == "member" or is_active is False:
                require_another(admins, row)
            row.role = role or row.role
            row.is_active = row.is_active if is_active is None else is_active
            row.password_hash = password_hash or row.password_hash
            session.flush()
            return user_of(session, row)

    def delete(self, user_id: str) -> None:
        """Delete a user with chats, keys and sessions; knowledge bases and files stay, ownerless.

        Raise NotFound, or Conflict for the last active administrator.
        """
        with self._database.session() as session:
            admins = lock_admins(session)
            row = found(session, user_id)
            require_another(admins, row)
            for owned in (ApiKeyRow, SessionRow, MembershipRow):
                session.execute(delete(owned).where(owned.user_id == user_id))
            session.execute(delete(ChatRow).where(ChatRow.owner_id == user_id))
            forget_principal(session, "user", user_id)
            session.execute(
                update(CollectionRow).where(CollectionRow.owner_id == user_id).values(owner_id=None)
            )
            session.execute(
                update(StoredFileRow).where(StoredFileRow.owner_id == user_id).values(owner_id="")
            )
            session.delete(row)


class GroupRepository:
    """Each call is one transaction. Names are unique without case."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> list[Group]:
        """All, by name."""
        with self._database.snapshot() as session:
            rows = session.scalars(select(GroupRow).order_by(GroupRow.name_key)).all()
            return [group_of(session, row) for row in rows]

    def create(self, name: str) -> Group:
        """Raise Conflict where the name is taken."""
        row = GroupRow(id=new_id(), name=name, name_key=key_of(name), created_at=utc_now())
        with taken(f"a group named {name!r} exists already"), self._database.session() as session:
            session.add(row)
        return Group(row.id, row.name, ())

    def change(
        self, group_id: str, name: str | None = None, user_ids: Sequence[str] | None = None
    ) -> Group:
        """Change what is not None; NotFound for an unknown group or user."""
        with taken(f"a group named {name!r} exists already"), self._database.session() as session:
            row = session.get(GroupRow, group_id, with_for_update=True)
            if row is None:
                raise NotFound(f"there is no group {group_id}")
            if name is not None:
                row.name, row.name_key = name, key_of(name)
            if user_ids is not None:
                session.execute(delete(MembershipRow).where(MembershipRow.group_id == group_id))
                for user_id in dict.fromkeys(user_ids):
                    found(session, user_id)
                    session.add(MembershipRow(group_id=group_id, user_id=user_id))
            session.flush()
            return group_of(session, row)

    def delete(self, group_id: str) -> None:
        """Delete a group and what was shared with it; NotFound for an unknown one."""
        with self._database.session() as session:
            row = session.get(GroupRow, group_id)
            if row is None:
                raise NotFound(f"there is no group {group_id}")
            forget_principal(session, "group", group_id)
            session.execute(delete(MembershipRow).where(MembershipRow.group_id == group_id))
            session.delete(row)


class taken:  # noqa: N801 - a context manager, named for how it reads
    """Turn a name that is taken into Conflict."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, IntegrityError):
            raise Conflict(self._message) from error


def key_of(name: str) -> str:
    """What two names that people take for the same have in common."""
    return unicodedata.normalize("NFKC", name).casefold()


def add_user(session: Session, name: str, password_hash: str, role: Role) -> User:
    """A new, active user."""
    row = UserRow(
        id=new_id(),
        name=name,
        name_key=key_of(name),
        password_hash=password_hash,
        role=role,
        is_active=True,
        created_at=utc_now(),
        last_seen_at=None,
    )
    session.add(row)
    session.flush()
    return user_of(session, row)


def adopt(session: Session, user_id: str) -> None:
    """Give a user the chats and files that belong to nobody."""
    for table in (ChatRow, StoredFileRow):
        session.execute(update(table).where(table.owner_id == "").values(owner_id=user_id))


def found(session: Session, user_id: str) -> UserRow:
    """The row, or NotFound."""
    row = session.get(UserRow, user_id)
    if row is None:
        raise NotFound(f"there is no user {user_id}")
    return row


def lock_admins(session: Session) -> Sequence[UserRow]:
    """The active administrators, whom nobody changes until we commit."""
    is_admin = (UserRow.role == "admin", UserRow.is_active)
    return session.scalars(
        select(UserRow).where(*is_admin).order_by(UserRow.id).with_for_update()
    ).all()


def require_another(admins: Sequence[UserRow], row: UserRow) -> None:
    """Raise Conflict where this is the only active administrator."""
    if [admin.id for admin in admins] == [row.id]:
        raise Conflict(LAST_ADMIN.format(name=row.name))


def forget_principal(session: Session, kind: str, principal_id: str) -> None:
    """Take back what was shared with a user or a group."""
    session.execute(
        delete(GrantRow).where(GrantRow.kind == kind, GrantRow.principal_id == principal_id)
    )


def user_of(session: Session, row: UserRow) -> User:
    """The domain's view of a row."""
    groups = select(MembershipRow.group_id).where(MembershipRow.user_id == row.id)
    return User(
        id=row.id,
        name=row.name,
        role="admin" if row.role == "admin" else "member",
        is_active=row.is_active,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        group_ids=tuple(sorted(session.scalars(groups))),
    )


def group_of(session: Session, row: GroupRow) -> Group:
    """The domain's view of a row."""
    members = select(MembershipRow.user_id).where(MembershipRow.group_id == row.id)
    return Group(row.id, row.name, tuple(sorted(session.scalars(members))))
