"""`python -m service` is the command `backup-service`."""

import os

# gRPC's core would write text among the JSON at every header that a client got wrong. Read when gRPC is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# gRPC's polling thread reads the sockets itself, without the threads of the event engine. docs/decisions/0011-concurrent-accept.md
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

from service.cli import main

main()
