"""Readiness: the check that this replica can answer calls, and the reason if it cannot."""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum

from service.api.health import Health
from service.errors import CatalogUnavailable, Error
from service.observability import logs
from service.postgres.catalog import Catalog
from service.postgres.connect.replication import replication_lag
from service.postgres.database import Database
from service.postgres.errors import unavailable
from service.postgres.schema import REQUIRED_REVISION, present_revision
from service.waiting import sleep_in_steps, wait_for_first


class NotReady(StrEnum):
    """Every reason why a replica is not ready, under the function that returns or sets it.

    The metric `backups_not_ready` shows the reason. A new reason is logged as `not serving`, except STARTING. Health checks and the metric
    `backups_ready` only show that the replica is not ready. docs/operating.md explains each reason.
    """

    # Readiness.__init__
    STARTING = "no check has finished yet"
    # Readiness.check
    CATALOG_UNAVAILABLE = "the catalog cannot be read"
    CHECK_SLOW = "the check takes longer than its period"
    UNEXPECTED_ERROR = "the check failed unexpectedly"
    # Readiness.find_reason
    STANDBY_BEHIND = "the standby is too far behind"
    SCHEMA_TOO_OLD = "the schema is older than this release requires"
    # SigningKeys.problem, in auth/signing_keys.py
    KEYS_NEVER_READ = "the signing keys were never read"
    KEYS_TOO_OLD = "the signing keys are older than BACKUPS_JWKS_MAX_AGE"
    NO_USABLE_KEY = "the JWKS has no usable key"
    # Readiness.enter_graceful_shutdown
    SHUTTING_DOWN = "the server is shutting down"


class Readiness:
    """The result of the last check. After shutdown has begun, it no longer changes."""

    def __init__(
        self,
        health: Health,
        database: Database,
        catalog: Catalog,
        *,
        max_replication_lag: timedelta,
        period: timedelta,
        timeout: timedelta,
        keys_problem: Callable[[], NotReady | None],
    ) -> None:
        """
        Args:
            max_replication_lag: how long a standby may be behind before the replica is not ready.
            period: a check that takes longer counts as failed until it finishes.
            timeout: after this time, a check is cancelled. It may exceed the period, so that a second host can be tried.
            keys_problem: returns the reason why no token can be verified now, or None.
        """
        self.required_revision = REQUIRED_REVISION
        self.reason: NotReady | None = NotReady.STARTING
        """None if the replica is ready."""
        self._health, self._database, self._catalog = health, database, catalog
        self._keys_problem = keys_problem
        self._max_replication_lag = max_replication_lag.total_seconds()
        self._period, self._timeout = period, timeout
        self.succeeded_at = self._up_to_date_at = -math.inf
        self._logged: object = None

    @property
    def last_success_age(self) -> float:
        """Seconds since the database was last reached and its schema was recent enough; infinite if it never was."""
        return time.monotonic() - self.succeeded_at

    async def check(self) -> None:
        """Check once, and update the state."""
        checking = asyncio.ensure_future(self.find_reason())
        try:
            await wait_for_first(sleep_in_steps(self._period), _finished(checking))
            if not checking.done() and self.reason in (None, NotReady.STARTING):  # another reason stays until the check has finished
                self._set(NotReady.CHECK_SLOW)
            async with asyncio.timeout(self._timeout.total_seconds()):
                self._set(await checking)
        except CatalogUnavailable as exc:
            self._set(NotReady.CATALOG_UNAVAILABLE, exc)
        except TimeoutError as exc:
            self._set(NotReady.CATALOG_UNAVAILABLE, unavailable(exc))
        except Exception as exc:
            self._set(NotReady.UNEXPECTED_ERROR, exc)
        finally:
            checking.cancel()

    async def find_reason(self) -> NotReady | None:
        """Run the service's own queries, and return the reason why the replica is not ready, or None.

        Raises:
            CatalogUnavailable: see `Database.probe`.
        """
        is_behind = await self._is_behind()
        if is_behind:
            await self._database.reconnect()  # another host may be up to date
        await self._catalog.probe()
        is_migrated = await present_revision(self._database) >= self.required_revision
        if is_migrated:
            self.succeeded_at = time.monotonic()
        if is_behind:
            return NotReady.STANDBY_BEHIND
        return self._keys_problem() if is_migrated else NotReady.SCHEMA_TOO_OLD

    async def _is_behind(self) -> bool:
        """Return True if the replication lag has exceeded its maximum for at least as long as that maximum.

        The lag is the age of the last replayed transaction. After an idle time of the primary, a new transaction makes it large until that
        transaction is replayed.
        """
        now = time.monotonic()
        if (await replication_lag(self._database)).total_seconds() <= self._max_replication_lag:
            self._up_to_date_at = now
        return now - self._up_to_date_at > self._max_replication_lag

    def enter_graceful_shutdown(self) -> None:
        """Set the reason SHUTTING_DOWN permanently."""
        self._set(NotReady.SHUTTING_DOWN)
        self._health.enter_graceful_shutdown()

    def _set(self, reason: NotReady | None, error: Exception | None = None) -> None:
        if self.reason is NotReady.SHUTTING_DOWN:
            return
        self.reason = reason
        self._log(reason, error)
        self._health.set(serving=reason is None)

    def _log(self, reason: NotReady | None, error: Exception | None) -> None:
        """Log a change of the state or of its cause, not every check."""
        state = reason or "ready", str(error) if isinstance(error, Error) else type(error)
        if state == self._logged:
            return
        self._logged = state
        if reason is None:
            logs.event("serving")
        else:
            cause = {} if error is None else {"error": logs.describe(error)}
            logs.event("not serving", level="info" if reason is NotReady.SHUTTING_DOWN else "warning", reason=reason.value, **cause)


async def _finished(task: "asyncio.Future[NotReady | None]") -> None:
    await asyncio.wait((task,))  # unlike `await task`, cancellation of the wait does not cancel the task
