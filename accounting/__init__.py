"""Who has how much, and the books that prove it: knows nothing of HTTP."""
