"""Upload of an adapter in the browser: the form, the check of the chosen files, and the publication."""
