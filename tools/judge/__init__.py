"""`make judge`: the official SDK's own test suite against a running stack."""
