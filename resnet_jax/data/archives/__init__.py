"""Turns the published archives of well-known data sets into sets that train."""
