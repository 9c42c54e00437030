"""Temporary."""

UNKNOWN = 128
