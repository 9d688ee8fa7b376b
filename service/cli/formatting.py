"""Human-readable forms of times, durations, sizes and untrusted text."""

from datetime import UTC, datetime, timedelta

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str) -> str:
    """Escape characters that a terminal would interpret, such as those that move the cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def time(instant: datetime) -> str:
    """Return a time in UTC with seconds: `2026-11-23 20:02:11Z`."""
    return f"{instant:%Y-%m-%d %H:%M:%SZ}"


def json_time(instant: datetime) -> str:
    """Return a time in UTC in the format of JSON: `2026-11-23T20:02:11.357020Z`."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def duration(value: timedelta) -> str:
    """Return the two largest units: `3d 4h`, `2h 27m`, `12s`."""
    if value < timedelta(0):
        return f"-{duration(-value)}"
    minutes, seconds = divmod(int(value.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def size(count: int) -> str:
    """Return a number of bytes in binary units: `851.0 GiB`."""
    if count < 1024:
        return f"{count} B"
    exponent = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**exponent:.1f} {_UNITS[exponent - 1]}"
