"""The local exchange: the other side of the wire, with a ledger of its own. Imports only ground, words and ``data``."""
