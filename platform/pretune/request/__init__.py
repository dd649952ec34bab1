"""From what was typed to a request that is checked completely, before anything starts."""
