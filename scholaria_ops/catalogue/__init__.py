"""The catalogue: backup sets on disk, their manifest and evidence, their commit protocol, records and lock."""
