"""`python -m service` is the command `backup-service`."""

from service.cli import main

main()
