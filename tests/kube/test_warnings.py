"""The header Warning, as API servers write it, and as nobody should."""

import pytest

from cloudprovider.kube.warnings import MOST, warnings_in


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ('299 - "spec.ipPool: no address yet"', ["spec.ipPool: no address yet"]),
        ('299 - "two", 299 kube-apiserver "in one"', ["two", "in one"]),
        (r'299 - "a \"quoted\" one, \\ too"', ['a "quoted" one, \\ too']),
        ('299 - "dated" "Wed, 21 Oct 2026 07:28:00 GMT"', ["dated"]),
        ('214 - "Transformation Applied"', []),
        ('299 - "without an end', []),
        ("", []),
        ("299", []),
    ],
)
def test_texts(header: str, texts: list[str]) -> None:
    assert warnings_in([header]) == texts


def test_each_once_and_not_without_bound() -> None:
    assert warnings_in(['299 - "same"', '299 - "same"', '299 - "other"']) == ["same", "other"]
    assert len(warnings_in(f'299 - "{i}"' for i in range(1000))) == MOST
