"""Which installation the data belongs to, and the files that may be of no use any more."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables; the installation gets its id."""
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.bulk_insert(installation, [{"id": uuid4().hex}])
    op.create_table(
        "unused_files",
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("content_hash", name=op.f("pk_unused_files")),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("unused_files")
    op.drop_table("installation")
