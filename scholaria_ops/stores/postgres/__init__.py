"""PostgreSQL: one exported snapshot that the dump and every measurement share."""
