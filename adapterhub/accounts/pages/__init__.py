"""Pages: signing in, sessions, the second factor, tokens, service accounts and roles."""
