"""The stand-in provider: a real server that speaks every dialect, deterministically."""
