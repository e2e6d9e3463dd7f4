"""What `make` runs beside the services: checks and the demonstration."""
