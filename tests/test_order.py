"""The order of the tests' own files loses none of them and keeps two long ones apart."""

from __future__ import annotations

import pytest

from tests.order import spread


@pytest.mark.parametrize(
    ("waits", "computes", "ordered"),
    [
        ("", "abc", "abc"),
        ("A", "abc", "Aabc"),
        ("ABC", "", "ABC"),
        ("AB", "abc", "AabBc"),
        ("ABC", "abcdef", "AabBcdCef"),
    ],
)
def test_what_waits_is_spread_over_the_first_of_what_computes(waits: str, computes: str, ordered: str):
    assert "".join(spread(waits, computes)) == ordered
