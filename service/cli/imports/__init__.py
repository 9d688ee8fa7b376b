"""The commands `import walg` and `import gpbackup`."""
