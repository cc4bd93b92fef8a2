"""One forward pass of any model, watched: which operations ran, which attention was the last, how it goes on."""

from .places import Grid as Grid
from .token_pass import NoTokensError as NoTokensError
from .token_pass import Readout as Readout
from .token_pass import TokenPass as TokenPass
from .watched_pass import HookPoint as HookPoint
