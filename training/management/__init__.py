"""Management commands of the application `training`."""
