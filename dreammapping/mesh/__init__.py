"""`python -m dreammapping mesh`: a textured mesh of a run's result."""
