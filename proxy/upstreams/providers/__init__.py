"""What each kind of provider wants: URL, headers, field lists; pure."""
