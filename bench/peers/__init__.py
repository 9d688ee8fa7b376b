"""Other implementations of the API. Each is a program that reads BACKUPS_DATABASE_URL and prints its address, as the service logs it."""
