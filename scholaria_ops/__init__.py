"""Provable backups of PostgreSQL + Redis + Qdrant services, run by Dagster."""

__version__ = "0.1.0"
