"""Durations in options and files, such as 26h."""

import re
from datetime import timedelta

_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def parse_duration(text: str) -> timedelta | None:
    """Parse a number with s, m, h or d; return None for any other text."""
    matched = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    return int(matched[1]) * _UNITS[matched[2]] if matched else None
