"""Stand-ins that let the whole platform run on one machine without Docker or keys."""
