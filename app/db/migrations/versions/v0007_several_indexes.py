"""Several indexes side by side: chunks, texts, terms and stale vectors say which one is theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """All chunks of before go to the index that most documents lie in; others are queued again."""
    name = op.get_bind().scalar(
        sa.text(
            "SELECT indexed_by FROM documents WHERE indexed_by IS NOT NULL"
            " GROUP BY indexed_by ORDER BY count(*) DESC LIMIT 1"
        )
    )
    create_indexes()
    move_texts(name or "")
    move_terms(name or "")
    name_chunks(name or "")
    op.add_column(
        "stale_vectors", sa.Column("index_name", sa.String(), nullable=False, server_default="")
    )
    set_index_name("stale_vectors", name or "")
    op.create_index(op.f("ix_stale_vectors_index_name"), "stale_vectors", ["index_name"])


def create_indexes() -> None:
    """The rows of the indexes."""
    op.create_table(
        "indexes",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("embedding_model", sa.String(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("chunker", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("recall", sa.JSON(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("switched_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_indexes")),
    )
    op.create_index(op.f("ix_indexes_state"), "indexes", ["state"])


def move_texts(name: str) -> None:
    """From one text a document to one for each index that holds it."""
    op.create_table(
        "indexed_documents",
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("index_name", sa.String(), nullable=False),
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.Column("num_chunks", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_indexed_documents_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "index_name", name=op.f("pk_indexed_documents")),
    )
    for column in ("index_name", "content_hash"):
        op.create_index(op.f(f"ix_indexed_documents_{column}"), "indexed_documents", [column])
    op.get_bind().execute(
        sa.text(
            "INSERT INTO indexed_documents"
            " (document_id, index_name, content_hash, num_chunks, text)"
            " SELECT documents.id, CAST(:name AS VARCHAR),"
            " CASE WHEN indexed_by = CAST(:name AS VARCHAR) THEN"
            " coalesce(indexed_hash, '') ELSE '' END, num_chunks, text"
            " FROM documents JOIN document_texts ON document_id = documents.id"
        ),
        {"name": name},
    )
    op.get_bind().execute(
        sa.text("UPDATE documents SET indexed_by = :name WHERE indexed_hash IS NOT NULL"),
        {"name": name},
    )
    op.drop_table("document_texts")


def move_terms(name: str) -> None:
    """Another primary key needs another table."""
    op.create_table(
        "index_terms",
        sa.Column("index_name", sa.String(), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_chunks", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("index_name", "id", name=op.f("pk_index_terms")),
    )
    op.get_bind().execute(
        sa.text(
            "INSERT INTO index_terms (index_name, id, num_chunks)"
            " SELECT CAST(:name AS VARCHAR), id, num_chunks FROM terms"
        ),
        {"name": name},
    )
    op.drop_table("terms")


def name_chunks(name: str) -> None:
    """The index of each chunk, and positions that count in each."""
    with op.batch_alter_table("chunks") as batch:
        batch.add_column(sa.Column("index_name", sa.String(), nullable=False, server_default=name))
        batch.drop_constraint(op.f("uq_chunks_document_id_position"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_chunks_document_id_index_name_position"),
            ["document_id", "index_name", "position"],
        )
    set_index_name("chunks", name)
    op.create_index(op.f("ix_chunks_index_name"), "chunks", ["index_name"])


def set_index_name(table: str, name: str) -> None:
    """Give all rows of before this index."""
    op.get_bind().execute(sa.text(f"UPDATE {table} SET index_name = :name"), {"name": name})


def downgrade() -> None:
    """Chunks of several indexes do not fit into the tables of before."""
    raise NotImplementedError("restore the backup of before: there is no way back to schema 0006")
