"""The command of a logging binary's URI."""

import pytest

from kata_shimd.errors import InvalidArgument
from kata_shimd.host.logger import arguments


@pytest.mark.parametrize(
    ("uri", "argv"),
    [
        ("binary:///bin/log", ["/bin/log"]),
        ("binary:///bin/log?id=a&v&x=1", ["/bin/log", "id", "a", "v", "x", "1"]),
        ("binary:///bin/my%20log?a=%2Fb", ["/bin/my log", "a", "/b"]),
    ],
)
def test_path_and_query_become_words(uri, argv):
    assert arguments(uri) == argv


@pytest.mark.parametrize("uri", ["binary://", "binary://host/path", "binary:relative"])
def test_no_absolute_path_is_refused(uri):
    with pytest.raises(InvalidArgument, match="no absolute path"):
        arguments(uri)
