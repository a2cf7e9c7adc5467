# SPDX-License-Identifier: Apache-2.0
from hypothesis import settings


# The same examples at every run: a failure here is a failure there.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
