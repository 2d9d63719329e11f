"""Measurements: each beside what it is compared with, in the same run. Never part of the tests."""
