"""A tool's listing becomes entries of the catalog: a module a tool, without SQL."""
