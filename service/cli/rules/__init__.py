"""Rules that the backups of a cluster must meet, for `status` and `report`."""
