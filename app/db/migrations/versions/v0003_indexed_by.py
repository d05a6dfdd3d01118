"""Which index holds a document's chunks: another one means that it must be indexed again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; documents of before are indexed once more."""
    op.add_column("documents", sa.Column("indexed_by", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("documents", "indexed_by")
