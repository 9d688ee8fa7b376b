"""The schema's revision: the one that this code requires, and the one that a database has."""

from service.postgres.database import Database

# Revisions are numbers, so that a newer schema can be told from an older one: this code runs on any from here on.
REQUIRED_REVISION = 1

_PRESENT = "SELECT version_num FROM alembic_version"


async def present_revision(database: Database) -> int:
    """The revision of a database's schema.

    Raises:
        CatalogUnavailable: see `Database.look`; also before the first migration.
    """
    return max((int(row["version_num"]) for row in await database.look(_PRESENT)), default=0)
