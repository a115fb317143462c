"""govern: a service registry that is a Python library."""
