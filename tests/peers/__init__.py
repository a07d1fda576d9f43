"""Other people's clients against the local exchange, each in a virtual environment of its own and unchanged but for URLs."""
