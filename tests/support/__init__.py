"""Helpers that several test suites share; fixtures live in each suite's conftest.py."""
