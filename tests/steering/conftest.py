"""Pytest shows the values in a failed assertion of `comparisons` too."""

import pytest

pytest.register_assert_rewrite("comparisons")
