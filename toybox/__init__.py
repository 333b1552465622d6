"""A procedural world whose truth is known, and the small models that are trained on it."""
