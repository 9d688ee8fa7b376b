"""Readers of the backup tools' listings, one module for each tool, without SQL."""
