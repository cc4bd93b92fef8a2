"""The console command `xai-discern`."""

from adapters import _lazy

__getattr__ = _lazy.lazy_names(__name__, {})
