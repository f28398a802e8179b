"""Other systems that learn of ended runs."""
