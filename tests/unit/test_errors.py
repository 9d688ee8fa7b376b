"""The hierarchy of errors."""

import re

from service import errors


def _drawn() -> dict[str, str]:
    """Return each class of the drawing with the class above it."""
    parents: dict[str, str] = {}
    above = ["Error"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ├└─]+) (\w+)", line):
            depth = len(match[1]) // 4 + 1
            parents[match[2]] = above[depth - 1]
            above[depth:] = [match[2]]
    return parents


def test_drawing_equals_the_classes() -> None:
    """The drawing at the top of the module has each error class below its base class, in the order of definition."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Error)]
    assert classes[0] is errors.Error
    assert _drawn() == {kind.__name__: kind.__bases__[0].__name__ for kind in classes[1:]}
