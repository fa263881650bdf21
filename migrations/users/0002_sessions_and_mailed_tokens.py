"""Sessions, mailed tokens, sign-in with a provider, failed logins.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def moment(name, **options):
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def now(name):
    return moment(name, server_default=sa.text("now()"), nullable=False)


def upgrade():
    op.alter_column("users", "password_hash", nullable=True)
    op.add_column("users", moment("email_verified_at"))
    op.create_table(
        "external_identities",
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("subject", sa.Text(), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        now("created_at"),
    )
    op.create_index("ix_external_identities_user_id", "external_identities", ["user_id"])
    op.create_table(
        "sign_ins",
        sa.Column("state_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("code_verifier", sa.Text(), nullable=False),
        moment("expires_at", nullable=False),
    )
    op.create_index("ix_sign_ins_expires_at", "sign_ins", ["expires_at"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_agent", sa.Text()),
        sa.Column("client_address", sa.Text()),
        now("created_at"),
        now("last_used_at"),
        moment("expires_at", nullable=False),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("session_id", sa.BigInteger(), sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
        moment("replaced_at"),
        moment("expires_at", nullable=False),
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.create_index("ix_refresh_tokens_expires_at", "refresh_tokens", ["expires_at"])
    op.create_table(
        "mailed_tokens",
        sa.Column("token_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        moment("expires_at", nullable=False),
    )
    op.create_index("ix_mailed_tokens_user_id", "mailed_tokens", ["user_id"])
    op.create_index("ix_mailed_tokens_expires_at", "mailed_tokens", ["expires_at"])
    op.create_table(
        "mail_requests",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        moment("answered_at"),
    )
    op.create_index("ix_mail_requests_email_purpose", "mail_requests", ["email", "purpose"])
    op.create_table(
        "login_failures",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("client_address", sa.Text(), nullable=False),
        sa.Column("account_hash", sa.LargeBinary(), nullable=False),
        moment("failed_at", server_default=sa.text("clock_timestamp()"), nullable=False),
    )
    op.create_index("ix_login_failures_client_address_failed_at", "login_failures", ["client_address", "failed_at"])
    op.create_index("ix_login_failures_failed_at", "login_failures", ["failed_at"])


def downgrade():
    """Deletes accounts without a password: the older schema cannot store them."""
    for table in (
        "login_failures",
        "mail_requests",
        "mailed_tokens",
        "refresh_tokens",
        "sessions",
        "sign_ins",
        "external_identities",
    ):
        op.drop_table(table)
    op.drop_column("users", "email_verified_at")
    op.execute("DELETE FROM users WHERE password_hash IS NULL")
    op.alter_column("users", "password_hash", nullable=False)
