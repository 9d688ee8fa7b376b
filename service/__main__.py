"""`python -m service` is the command `backup-service`."""

import gc
import os

# Otherwise gRPC core writes plain text into the JSON log for each malformed header. gRPC reads the variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# gRPC's polling thread reads the sockets itself, without the threads of the event engine. docs/decisions/0011-concurrent-accept.md
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

# Imported modules live until exit. Collecting them, during the import and again at exit, takes a third of a short command's CPU.
gc.disable()

from service.cli import main  # noqa: E402 - gc.disable() comes first

gc.freeze()
gc.enable()

main()
