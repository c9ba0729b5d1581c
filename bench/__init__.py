"""How fast it is, measured: own stand-in provider and clients, direct against through the gateway, in one run."""
