"""The errors that depthcomp raises, one class per outcome; `DepthCompError` is the base of all."""

from depthcomp_errors import *  # noqa: F403
from depthcomp_errors import __all__ as __all__
