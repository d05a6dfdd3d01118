"""Which index the settings named at the last start, and which indexes switch by themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("installation", sa.Column("configured_index", sa.String(), nullable=True))
    op.add_column(
        "indexes",
        sa.Column("switches_itself", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_column("indexes", "switches_itself")
    op.drop_column("installation", "configured_index")
