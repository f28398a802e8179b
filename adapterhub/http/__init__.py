"""The way of a request from the ASGI server to Django: one thread for its body, and limits on what may be sent."""
