"""Other implementations of the API. Each is a program whose argument is the URL of PostgreSQL, and which prints its port."""
