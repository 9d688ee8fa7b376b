"""Files of the project that are not modules: migrations, a sample, the roles of PostgreSQL.

In a clone they have their paths below its root. A wheel contains them in `service/data` (`force-include` in pyproject.toml).
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "data"

IS_CLONE = not _IN_WHEEL.is_dir()
ROOT = _PACKAGE.parent if IS_CLONE else _IN_WHEEL

MIGRATIONS = ROOT / "migrations"
ROLES = ROOT / "deploy" / "postgres" / "roles.sql"
SAMPLE = ROOT / "samples" / "walg-backup-list.json"


def default_data_folder() -> Path:
    """Return the default folder of the embedded PostgreSQL: in the clone, or in the user's home if a wheel is installed."""
    if IS_CLONE:
        return ROOT / ".data"
    share = os.environ.get("XDG_DATA_HOME", "")
    return Path(share if share.startswith("/") else os.path.expanduser("~/.local/share"), "backup-service")  # noqa: PTH111  # Path.expanduser raises an error if there is no home


def shown_path(path: Path) -> Path:
    """Return the path of a project file, for commands that users copy. In a clone, it is relative to the root."""
    return path.relative_to(ROOT) if IS_CLONE else path
