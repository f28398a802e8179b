"""Upload of a version in the browser: the form, the check of what was chosen, and the publication."""
