"""Commands of the application `training`."""
