"""Connections to PostgreSQL: hosts, TLS, passwords, timeouts."""
