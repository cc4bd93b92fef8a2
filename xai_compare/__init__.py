"""Compare explanation methods by many scores on a model and data: resumable, on many processes, with a report."""

try:
    import accelerate as accelerate
    import pandas as pandas
    import pyarrow as pyarrow
    import yaml as yaml
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"xai_compare needs {error.name}: pip install 'xai-discern[compare]'.") from error

from ._comparison import Comparison as Comparison
from ._methods import methods_named as methods_named
from ._settings import METHODS as METHODS
from ._settings import METRICS as METRICS
from ._settings import Settings as Settings
from .arena import arena as arena
from .compare import compare as compare
