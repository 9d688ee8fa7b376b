"""`python -m service` is the command `backup-service`."""

import os

# gRPC's core would write text among the JSON at every header that a client got wrong. Read when gRPC is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from service.cli import main

main()
