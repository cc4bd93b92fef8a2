"""The console command `xai-discern`."""

from adapters._lazy import lazy_names

__getattr__ = lazy_names(__name__, {})
