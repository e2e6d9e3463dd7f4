"""Requests to addresses that clients name: only to where the public internet is, unless the operator allows more."""
