"""What every worker imports, done once in the process that they are forked from."""

import psycopg2  # noqa: F401
import sqlalchemy.dialects.postgresql.psycopg2  # noqa: F401

import hpo.checkpoints
import hpo.cli
import hpo.live
import hpo.signals
import hpo.slots
import hpo.worker  # noqa: F401
