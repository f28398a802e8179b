"""The one form of dates and times, also on Django's own pages."""
