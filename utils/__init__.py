"""Small tools, one noun a file; imports nothing from the other packages."""
