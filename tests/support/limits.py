"""Limits of the connection pools that tests open."""

from datetime import timedelta

from service.postgres.database import Limits

LIMITS = Limits(
    pool_size=2,
    connect=timedelta(seconds=3),
    acquire=timedelta(seconds=5),
    statement=timedelta(seconds=10),
)
