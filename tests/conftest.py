"""What every test run has in common: how many examples property tests try."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.integration.database"]

# Shared machines stall: an example that took long is no finding. `make proof` tries many more.
settings.register_profile("ci", deadline=None, max_examples=100)
settings.register_profile("proof", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
