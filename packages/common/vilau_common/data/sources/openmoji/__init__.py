"""OpenMoji: about 3,700 drawings with names, for experiments on pictures that nobody generated for us."""
