"""How a client's bytes come in and go out."""
