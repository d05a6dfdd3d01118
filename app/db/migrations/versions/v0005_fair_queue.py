"""Whose turn a job takes, when each owner was last served, and whether the queue is held."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; jobs of before belong to the source of their document."""
    op.add_column("jobs", sa.Column("owner", sa.String(), nullable=False, server_default=""))
    op.execute(
        "UPDATE jobs SET owner ="
        " (SELECT source FROM documents WHERE documents.id = jobs.document_id)"
    )
    op.create_index(
        op.f("ix_jobs_owner_stage_attempts_queued_at"),
        "jobs",
        ["owner", "stage", "attempts", "queued_at"],
    )
    job_owners = op.create_table(
        "job_owners",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_job_owners")),
    )
    owners = op.get_bind().scalars(sa.text("SELECT DISTINCT owner FROM jobs")).all()
    never = datetime(1970, 1, 1, tzinfo=UTC)
    op.bulk_insert(job_owners, [{"owner": owner, "served_at": never} for owner in owners])
    op.add_column(
        "installation",
        sa.Column("is_queue_paused", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_column("installation", "is_queue_paused")
    op.drop_table("job_owners")
    op.drop_index(op.f("ix_jobs_owner_stage_attempts_queued_at"), "jobs")
    op.drop_column("jobs", "owner")
