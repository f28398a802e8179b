"""Commands on the server itself: they need the database, not the REST API."""
