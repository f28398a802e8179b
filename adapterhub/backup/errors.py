"""The error of backups and restores, which no request raises."""


class BackupError(Exception):
    """Raised with the sentence that says why nothing was done, and the way out."""
