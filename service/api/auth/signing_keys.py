"""The keys that tokens are verified with, read again in the background. Nothing is read while a call waits."""

import asyncio
import contextlib
import math
import time
from collections import Counter
from datetime import timedelta

from service.api.auth.jwks import Ignored, Jwks, SigningKey, parse_jwks
from service.api.auth.jwks_source import Read
from service.api.readiness import NotReady
from service.errors import KeysUnavailable, Unauthenticated
from service.observability import logs

# The next read begins when this part of the refresh period has passed, so that a withdrawn key stops within the period.
_BEFORE_REFRESH = 0.9


class SigningKeys:
    """The keys of the last JWKS that could be read, for as long as they may be used."""

    def __init__(self, read: Read, *, refresh: timedelta, max_age: timedelta, retry: timedelta) -> None:
        """
        Args:
            read: returns a JWKS document; it bounds its own time.
            refresh: the time within which a change of the JWKS takes effect.
            max_age: how long keys are used if the JWKS cannot be read.
            retry: the shortest time between two reads, unless `refresh` is shorter; the caller of `refresh` waits for it.
        """
        self._read = read
        self._refresh = refresh.total_seconds() * _BEFORE_REFRESH
        self._max_age = max_age.total_seconds()
        self.retry = min(retry, refresh * _BEFORE_REFRESH)
        """The shortest time between two reads."""
        self._due_at = -math.inf
        self._keys: dict[str | None, SigningKey] = {}
        self._ignored: Counter[Ignored] = Counter()
        self._read_at: float | None = None
        self._unknown_requested = asyncio.Event()
        self.version = 0
        """Changes whenever the keys change."""

    @property
    def age(self) -> float:
        """Seconds since the keys were read; infinite if they never were."""
        return math.inf if self._read_at is None else time.monotonic() - self._read_at

    @property
    def problem(self) -> NotReady | None:
        """The reason why no token can be verified now, or None."""
        if self._read_at is None:
            return NotReady.KEYS_NEVER_READ
        if self.age >= self._max_age:
            return NotReady.KEYS_TOO_OLD
        return None if self._keys else NotReady.NO_USABLE_KEY

    def get(self, kid: str | None) -> SigningKey:
        """Return the key with this id. Without an id, return the only key.

        Raises:
            Unauthenticated: the key is unknown. The JWKS is read again soon.
            KeysUnavailable: see `problem`.
        """
        if self.problem:
            raise KeysUnavailable
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid is None or kid not in self._keys:
            self._unknown_requested.set()
            raise Unauthenticated("key")
        return self._keys[kid]

    def holds(self, key: SigningKey) -> bool:
        """Return True if the key may still be used."""
        return self._keys.get(key.kid) is key and self.age < self._max_age

    async def refresh(self) -> None:
        """Wait until the keys are due or an unknown key is requested, then read them. Due immediately after a failed read."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unknown_requested.wait(), max(self._due_at - time.monotonic(), 0))
        self._unknown_requested.clear()
        began = time.monotonic()
        is_read = await self.update() and self.problem is None
        self._due_at = began + self._refresh if is_read else -math.inf

    async def update(self) -> bool:
        """Read the keys once. Return True if a JWKS was read; its keys then replace the previous ones, even if there are none."""
        try:
            found = parse_jwks(await self._read())
        except Exception as exc:  # any error: the loop that calls this must keep running
            logs.event("signing keys cannot be read", level="warning", error=logs.describe(exc))
            return False
        self._replace(found)
        self._read_at = time.monotonic()
        return True

    def _replace(self, found: Jwks) -> None:
        # Unchanged keys stay the same objects, so that tokens verified with them stay in the cache.
        known = {key.kid: key for key in self._keys.values() if found.keys.get(key.kid, key).entry == key.entry}
        keys = {kid: known.get(kid, key) for kid, key in found.keys.items()}
        if keys != self._keys or self._read_at is None:
            self.version += 1
            logs.event("signing keys", level="info" if keys else "error", count=len(keys))
        if found.ignored != self._ignored:
            for reason, count in sorted(found.ignored.items()):
                logs.event("signing keys ignored", level="error" if reason == "private" else "warning", reason=reason, count=count)
        self._keys, self._ignored = keys, found.ignored
