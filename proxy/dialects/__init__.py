"""The languages that clients and providers speak, sans-IO: bytes in, decisions out."""
