"""Metadata of documents, one row a value, which searches can be narrowed by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "document_metadata",
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("text", text, nullable=True),
        sa.Column("number", sa.Float(), nullable=True),
        sa.Column("flag", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_document_metadata_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "key", name=op.f("pk_document_metadata")),
    )
    op.create_index(op.f("ix_document_metadata_key_text"), "document_metadata", ["key", "text"])
    op.create_index(op.f("ix_document_metadata_key_number"), "document_metadata", ["key", "number"])


def downgrade() -> None:
    """Drop the table with its values."""
    op.drop_table("document_metadata")
