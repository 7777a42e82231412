"""The tables of a store. Every row carries a digest of its values, because SQLite does not notice a flipped byte.

The digests of the journal are a chain: each takes in the one before it, so that no entry can be missing.
"""

from __future__ import annotations

import sqlalchemy as sql

__all__ = ["SCHEMA_VERSION", "answers_table", "journal_table", "meta_table", "metadata", "rounds_table"]

SCHEMA_VERSION = 2

metadata = sql.MetaData()
meta_table = sql.Table(
    "meta",
    metadata,
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
)
journal_table = sql.Table(
    "journal",
    metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("now_s", sql.Float, nullable=False),
    sql.Column("event", sql.Text, nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
)
answers_table = sql.Table(
    "answers",
    metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("device", sql.String(64), nullable=False),
    sql.Column("sha256", sql.String(64), nullable=False),
    sql.Column("outcome", sql.String(16), nullable=False),
    sql.Column("answer", sql.Text, nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
    sql.UniqueConstraint("round", "device", "sha256"),
)
rounds_table = sql.Table(
    "rounds",
    metadata,
    sql.Column("round", sql.Integer, primary_key=True),
    sql.Column("merged", sql.Text, nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
)
