"""All of PostgreSQL: the only folder that imports asyncpg and Alembic. Their types and errors end here."""
