"""The command `chain`."""
