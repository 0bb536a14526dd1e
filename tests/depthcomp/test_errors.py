"""The public errors are those of the shared list, every one."""

import depthcomp_errors
from depthcomp import DepthCompError, errors
from depthcomp_errors.first_line import first_line


def test_each_error_is_public_by_its_name():
    defined = {name for name, value in vars(depthcomp_errors).items() if isinstance(value, type)}
    assert set(errors.__all__) == set(depthcomp_errors.__all__) == defined
    assert all(getattr(errors, name) is getattr(depthcomp_errors, name) for name in defined)
    assert all(issubclass(getattr(errors, name), DepthCompError) for name in defined)


def test_the_first_line_of_an_error_is_told():
    assert first_line(ValueError("\n shapes differ\nand more")) == "shapes differ"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(KeyError(), empty="no message") == "no message"
