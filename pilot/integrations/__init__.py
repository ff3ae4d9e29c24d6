"""Other frameworks in front of pilot."""
