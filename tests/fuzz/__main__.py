"""Program that fuzzes one target with atheris: `python -m tests.fuzz TARGET [LIBFUZZER FLAGS AND FOLDERS]`."""

import sys

import atheris

with atheris.instrument_imports(include=["service"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

from service.observability import logs


def main(name: str, *flags: str) -> None:
    """Fuzz the target with this name until libFuzzer exits the process."""
    logs.configure_logging(log_format="json", log_level="error")
    with TARGETS[name]() as target:
        atheris.Setup([sys.argv[0], *flags], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
