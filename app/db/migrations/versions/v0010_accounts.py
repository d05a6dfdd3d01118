"""Accounts: users, groups, sessions, keys, and whose knowledge bases, chats and files are."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

OWNED = ("chats", "stored_files")


def upgrade() -> None:
    """Create the tables; what is there already belongs to nobody."""
    make_people()
    make_credentials()
    op.create_table(
        "grants",
        sa.Column("collection_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_grants_collection_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection_id", "kind", "principal_id", name=op.f("pk_grants")),
    )
    op.create_index(op.f("ix_grants_principal_id"), "grants", ["principal_id"])
    op.add_column("installation", sa.Column("setup_code_hash", sa.String(), nullable=True))
    op.add_column("collections", sa.Column("owner_id", sa.String(), nullable=True))
    op.create_index(op.f("ix_collections_owner_id"), "collections", ["owner_id"])
    for table in OWNED:
        op.add_column(table, sa.Column("owner_id", sa.String(), nullable=False, server_default=""))
        op.create_index(op.f(f"ix_{table}_owner_id"), table, ["owner_id"])


def make_people() -> None:
    """Create users, groups and who is in which."""
    op.create_table(
        "users",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name_key", name=op.f("uq_users_name_key")),
    )
    op.create_table(
        "user_groups",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_groups")),
        sa.UniqueConstraint("name_key", name=op.f("uq_user_groups_name_key")),
    )
    op.create_table(
        "memberships",
        sa.Column("group_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"],
            ["user_groups.id"],
            name=op.f("fk_memberships_group_id"),
            ondelete="CASCADE",
        ),
        user_key("memberships"),
        sa.PrimaryKeyConstraint("group_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"])


def make_credentials() -> None:
    """Create sessions and keys: their hashes."""
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        user_key("sessions"),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        user_key("api_keys"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"])


def user_key(table: str) -> sa.ForeignKeyConstraint:
    """Rows of a user go with the user."""
    return sa.ForeignKeyConstraint(
        ["user_id"], ["users.id"], name=op.f(f"fk_{table}_user_id"), ondelete="CASCADE"
    )


def downgrade() -> None:
    """Drop them: everything is everybody's again."""
    for table in OWNED:
        op.drop_index(op.f(f"ix_{table}_owner_id"), table)
        op.drop_column(table, "owner_id")
    op.drop_index(op.f("ix_collections_owner_id"), "collections")
    op.drop_column("collections", "owner_id")
    op.drop_column("installation", "setup_code_hash")
    for table in ("grants", "api_keys", "sessions", "memberships", "user_groups", "users"):
        op.drop_table(table)
