"""Commands of the application `accounts`."""
