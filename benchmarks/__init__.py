"""Measurements, apart from the tests: what is fast is shown here, never asserted there."""
