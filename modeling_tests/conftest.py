# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import settings

from modeling_tests.factories import mixed_batch, tiny_model


# The same examples at every run: a failure here is a failure there.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def batch(model):
    return mixed_batch(model.config)
