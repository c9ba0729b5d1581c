"""Everything that speaks HTTP: doors in front, providers behind, one request path between them."""
