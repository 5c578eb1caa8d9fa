"""Settings of every unit test."""

import os

from hypothesis import HealthCheck, settings

# How long an example takes to make or to run says something of the machine, which others use too, and nothing of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same examples every time: what fresh ones find belongs into a test, not between two unrelated changes.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
