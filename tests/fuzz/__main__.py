"""Fuzzes one target with atheris: python -m tests.fuzz TARGET [FLAGS AND FOLDERS OF LIBFUZZER]."""

import sys

import atheris

with atheris.instrument_imports(include=["service"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

from service.observability import logs


def main(name: str, *flags: str) -> None:
    logs.configure_logging(log_format="json", log_level="error")
    with TARGETS[name]() as target:
        atheris.Setup([sys.argv[0], *flags], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
