"""The public errors are those of the shared list, every one."""

import depthcomp_errors
from depthcomp import DepthCompError, errors


def test_each_error_is_public_by_its_name():
    defined = {name for name, value in vars(depthcomp_errors).items() if isinstance(value, type)}
    assert set(errors.__all__) == set(depthcomp_errors.__all__) == defined
    assert all(getattr(errors, name) is getattr(depthcomp_errors, name) for name in defined)
    assert all(issubclass(getattr(errors, name), DepthCompError) for name in defined)
