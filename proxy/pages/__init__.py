"""Pages and plain JSON routes that are not the request path."""
