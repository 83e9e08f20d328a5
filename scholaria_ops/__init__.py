"""Provable backups of PostgreSQL + Redis + Qdrant services, run by Dagster."""

import os

__version__ = "0.1.0"

# gRPC, once loaded, runs handlers of its own in every forked child, and can abort a child that was only to become
# pg_restore (seen under load). Nobody here uses gRPC in a forked child. It must be said before gRPC is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
