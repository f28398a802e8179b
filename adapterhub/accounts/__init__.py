"""Users, service accounts, projects, roles, tokens and sign-in."""
