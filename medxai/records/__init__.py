"""The worklist and the deliveries of record, in SQLite (WAL) or PostgreSQL."""
