"""Users, groups, credentials and grants, on SQLite and on Postgres."""

from datetime import timedelta

import pytest
from sqlalchemy import select, text

from app.db.chats import ChatRepository
from app.db.collections import CollectionRepository
from app.db.credentials import MAX_SESSIONS, SEEN_EACH, CredentialRepository
from app.db.documents import DocumentRepository
from app.db.grants import GrantRepository
from app.db.models import ApiKeyRow, GrantRow, InstallationRow, SessionRow
from app.db.session import utc_now
from app.db.stored_files import StoredFileRepository
from app.db.users import GroupRepository, UserRepository
from app.domain import Cursor, Grant, IncomingFile
from app.errors import Conflict, NotFound

DAY = timedelta(days=1)


@pytest.fixture
def users(database):
    return UserRepository(database)


@pytest.fixture
def ada(users):
    return users.create("Ada", "hash", "admin")


@pytest.fixture
def eve(users):
    return users.create("Eve", "hash", "member")


@pytest.fixture
def grants(database):
    return GrantRepository(database)


@pytest.fixture
def collections(database):
    return CollectionRepository(database)


@pytest.mark.parametrize("name", ["ada", "ADA", "Ａｄａ"])
def test_name_is_found_and_taken_without_case(users, ada, name):
    user, password_hash = users.by_name(name)
    assert (user.id, password_hash) == (ada.id, "hash")
    with pytest.raises(Conflict, match="exists already"):
        users.create(name, "hash", "member")


def test_first_account_takes_the_code_with_it(database, users):
    users.expect_setup("right")
    assert users.create_first("Ada", "hash", "wrong") is None
    assert users.create_first("Ada", "hash", "right").role == "admin"
    assert users.create_first("Eve", "hash", "right") is None
    with database.snapshot() as session:
        assert session.scalar(select(InstallationRow.setup_code_hash)) is None


def test_code_makes_no_account_where_there_is_one(users, ada):
    users.expect_setup("right")
    assert users.create_first("Eve", "hash", "right") is None
    assert users.count() == 1


@pytest.mark.parametrize("change", [{"role": "member"}, {"is_active": False}])
def test_last_active_administrator_stays(users, ada, eve, change):
    other = users.create("Other", "hash", "admin")
    users.change(other.id, is_active=False)
    with pytest.raises(Conflict, match="Ada is the last active administrator"):
        users.change(ada.id, **change)
    with pytest.raises(Conflict, match="Ada is the last active administrator"):
        users.delete(ada.id)
    users.change(other.id, is_active=True)
    assert users.change(ada.id, **change).id == ada.id


def test_inactive_administrator_can_be_deleted(users, ada):
    other = users.create("Other", "hash", "admin")
    users.change(other.id, is_active=False)
    users.delete(other.id)
    assert [user.id for user in users.list()] == [ada.id]


def test_user_goes_with_what_is_personal_and_leaves_what_is_shared(
    database, users, grants, collections, ada, eve
):
    credentials = CredentialRepository(database)
    credentials.open_session(eve.id, "token", DAY)
    credentials.add_key(eve.id, "key", "folio-x", "key", None)
    group = GroupRepository(database).create("Staff")
    GroupRepository(database).change(group.id, user_ids=[eve.id, ada.id])
    own = collections.create("Eve's", eve.id)
    grants.share("default", None, [Grant("user", eve.id, "editor")])
    chats = ChatRepository(database)
    chat = chats.create("Mine", [], eve.id)
    chats.add_question_and_answer(chat.id, "Why?", "run")
    files = StoredFileRepository(database)
    files.add("a.md", "text/markdown", "h", 1, eve.id)
    users.delete(eve.id)
    assert collections.get(own.id).owner_id is None
    assert grants.of("default") == ()
    assert chats.list() == []
    assert [file.owner_id for file in files.list(Cursor(10, True))[0]] == [""]
    assert GroupRepository(database).list()[0].user_ids == (ada.id,)
    with database.snapshot() as session:
        for table in (SessionRow, ApiKeyRow, GrantRow):
            assert session.scalars(select(table)).all() == []


def test_group_has_only_known_members_and_takes_its_grants_with_it(database, grants, ada, eve):
    groups = GroupRepository(database)
    group = groups.create("Staff")
    assert groups.change(group.id, user_ids=[eve.id, eve.id]).user_ids == (eve.id,)
    with pytest.raises(NotFound, match="no user nope"):
        groups.change(group.id, user_ids=["nope"])
    assert groups.list()[0].user_ids == (eve.id,)
    other = groups.create("Others")
    with pytest.raises(Conflict):
        groups.change(other.id, name="STAFF")
    grants.share("default", None, [Grant("group", group.id, "reader")])
    groups.delete(group.id)
    assert grants.of("default") == ()


def test_highest_of_several_roles_counts(database, users, grants, collections, eve):
    groups = GroupRepository(database)
    group = groups.create("Staff")
    groups.change(group.id, user_ids=[eve.id])
    ids = {name: collections.create(name).id for name in ("both", "all", "none", "group")}
    everyone, editor = Grant("everyone", None, "reader"), Grant("group", group.id, "editor")
    grants.share(ids["both"], None, [everyone, editor, Grant("user", eve.id, "reader")])
    grants.share(ids["all"], None, [everyone])
    grants.share(ids["group"], None, [editor])
    own = collections.create("own", eve.id)
    grants.share(own.id, eve.id, [everyone])
    roles = grants.roles(users.get(eve.id))
    assert roles == {
        ids["both"]: "editor",
        ids["all"]: "reader",
        ids["group"]: "editor",
        own.id: "owner",
    }
    groups.change(group.id, user_ids=[])
    assert grants.roles(users.get(eve.id))[ids["both"]] == "reader"


def test_sharing_replaces_and_refuses_strangers_as_a_whole(grants, collections, eve):
    grants.share("default", None, [Grant("user", eve.id, "editor")])
    with pytest.raises(NotFound, match="no group nope"):
        grants.share("default", eve.id, [Grant("group", "nope", "reader")])
    assert grants.of("default") == (Grant("user", eve.id, "editor"),)
    assert collections.get("default").owner_id is None
    with pytest.raises(NotFound, match="no collection"):
        grants.share("nope", None, [])


@pytest.mark.parametrize(("source", "is_public"), [("manual", True), ("upload", False)])
def test_manual_is_published_unless_other_documents_are_in_it(
    database, grants, collections, source, is_public
):
    manual = collections.create("Folio manual")
    DocumentRepository(database).add(
        IncomingFile(manual.id, source, "a.md", "a.md", "text/markdown", "h", 1)
    )
    for _ in range(2):
        grants.publish("Folio manual", "manual")
    assert grants.of(manual.id) == ((Grant("everyone", None, "reader"),) if is_public else ())


def test_deleted_collection_takes_its_grants_with_it(database, grants, collections, eve):
    other = collections.create("Other", eve.id)
    grants.share(other.id, eve.id, [Grant("everyone", None, "reader")])
    DocumentRepository(database).delete_collection(other.id)
    with database.snapshot() as session:
        assert session.scalars(select(GrantRow)).all() == []


class Clock:
    def __init__(self):
        self.now = utc_now()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def credentials(database, clock):
    return CredentialRepository(database, clock)


def test_session_is_renewed_now_and_then_and_ends(credentials, clock, eve):
    credentials.open_session(eve.id, "token", DAY)
    for _ in range(3):
        clock.now += DAY - timedelta(minutes=1)
        assert credentials.user_of_session("token", DAY).id == eve.id
    clock.now += DAY
    assert credentials.user_of_session("token", DAY) is None


def test_being_seen_is_written_rarely(database, credentials, clock, eve, users):
    credentials.open_session(eve.id, "token", DAY)
    first = clock.now
    clock.now += SEEN_EACH / 2
    credentials.user_of_session("token", DAY)
    assert users.get(eve.id).last_seen_at == first
    clock.now += SEEN_EACH
    credentials.user_of_session("token", DAY)
    assert users.get(eve.id).last_seen_at == clock.now


def test_sessions_of_a_user_are_bounded_and_ended_ones_forgotten(database, credentials, clock, eve):
    for number in range(MAX_SESSIONS + 3):
        clock.now += timedelta(seconds=1)
        credentials.open_session(eve.id, f"token-{number}", DAY)
    assert credentials.user_of_session("token-2", DAY) is None
    assert credentials.user_of_session("token-3", DAY)
    clock.now += 2 * DAY
    credentials.open_session(eve.id, "new", DAY)
    with database.snapshot() as session:
        assert session.scalars(select(SessionRow.token_hash)).all() == ["new"]


def test_shut_out_user_comes_in_by_nothing(credentials, users, eve):
    credentials.open_session(eve.id, "token", DAY)
    credentials.add_key(eve.id, "key", "folio-x", "key", None)
    users.change(eve.id, is_active=False)
    assert credentials.user_of_session("token", DAY) is None
    assert credentials.user_of_key("key") is None


def test_key_expires_and_tells_when_it_was_used(credentials, clock, eve):
    credentials.add_key(eve.id, "short", "folio-a", "a", DAY)
    credentials.add_key(eve.id, "long", "folio-b", "b", None)
    assert credentials.user_of_key("a").id == eve.id
    used_at = clock.now
    clock.now += DAY
    assert credentials.user_of_key("a") is None
    assert [key.last_used_at for key in credentials.keys(eve.id)] == [used_at, None]
    with pytest.raises(NotFound):
        credentials.delete_key("somebody else", credentials.keys(eve.id)[0].id)


def test_lists_are_of_an_owner_where_one_is_named(database):
    chats = ChatRepository(database)
    chats.create("Nobody's", [])
    chats.create("Eve's", [], "eve")
    assert [chat.title for chat in chats.list(owner_id="eve")] == ["Eve's"]
    assert [chat.title for chat in chats.list(owner_id="")] == ["Nobody's"]
    assert len(chats.list()) == 2


def test_documents_are_listed_and_counted_within_collections(database, collections):
    documents = DocumentRepository(database)
    other = collections.create("Other")
    for collection_id in ("default", other.id):
        documents.add(
            IncomingFile(collection_id, "upload", "a.md", "a.md", "text/markdown", "h", 1)
        )
    assert documents.list(within=[other.id])[1] == 1
    assert documents.list("default", within=[other.id])[1] == 0
    assert documents.list(within=[]) == ([], 0)
    assert documents.counts(within=[other.id]).num_documents == 1
    assert documents.counts(within=[]).num_documents == 0
    assert documents.counts().num_documents == 2


def test_quarantine_names_no_document_of_another_collection(database, collections):
    documents = DocumentRepository(database)
    other = collections.create("Other")

    def add(collection_id, name):
        file = IncomingFile(collection_id, "folder", name, name, "text/markdown", "bad", 1)
        return documents.add(file).document

    add("default", "Merger.pdf")
    with database.session() as session:
        session.execute(text("UPDATE jobs SET stage = 'quarantined', reason = 'it kills'"))
    assert "Merger.pdf" not in add(other.id, "b.pdf").error
    assert "Merger.pdf" in add("default", "c.pdf").error
