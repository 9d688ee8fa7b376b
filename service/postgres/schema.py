"""Revision of the schema: the one that this code requires, and the one that a database has."""

from service.postgres.database import Database

# Revisions are numbers, so that this code also runs on a newer schema.
REQUIRED_REVISION = 1

_PRESENT = "SELECT version_num FROM alembic_version"


async def present_revision(database: Database) -> int:
    """Return the revision of a database's schema; 0 if there is none.

    Raises:
        CatalogUnavailable: see `Database.probe`, or the schema was never migrated.
    """
    return max((int(row["version_num"]) for row in await database.probe(_PRESENT)), default=0)
