"""The arena of known answers: methods on tasks whose right explanation is known."""

from ._run import METHODS as METHODS
from ._run import OUT as OUT
from ._run import arena as arena
from .task import Conditions as Conditions
from .task import Problem as Problem
from .task import Score as Score
from .task import Task as Task
from .tasks import tasks_named as tasks_named
