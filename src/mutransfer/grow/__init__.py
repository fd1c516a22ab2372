"""Growing: the big model started from the small one, weights and optimizer state, exact up to the noise that is asked for."""

import sys
import types


class _Callable(types.ModuleType):
    def __call__(self, *args, **kwargs):
        from mutransfer.grow.grow import grow

        return grow(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
