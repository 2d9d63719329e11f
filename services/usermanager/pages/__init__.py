"""What people see in a browser: pages over the same nouns that the JSON API is over."""
