"""Access to PostgreSQL: the only folder that imports asyncpg and Alembic. Other folders do not see their types and errors."""
