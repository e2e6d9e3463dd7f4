"""Code shared by the services, and the one-machine stand-ins."""
