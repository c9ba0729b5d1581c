"""The only place that reaches providers."""
