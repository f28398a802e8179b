"""The shared parts of REST resources and pages: errors, scopes, filters, pages of lists and throttling."""
