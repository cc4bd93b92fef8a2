"""One forward pass of any model, watched: which operations ran, which attention was the last, how it goes on."""

from .attention_matrices import AttentionMatrices as AttentionMatrices
from .attention_matrices import mean_weights as mean_weights
from .attention_matrices import weights_and_gradients as weights_and_gradients
from .attention_weights import UnreadableAttentionError as UnreadableAttentionError
from .hook_point import HookPoint as HookPoint
from .last_attention import LastAttention as LastAttention
from .latents import latents_of as latents_of
from .operations import NotInClosedFormError as NotInClosedFormError
from .places import Grid as Grid
from .prediction import DifferentOutputError as DifferentOutputError
from .prediction import Prediction as Prediction
from .projections import Projection as Projection
from .queries import BY_QUERIES as BY_QUERIES
from .rows_read import rows_of_score as rows_of_score
from .stream_norms import stream_norms as stream_norms
from .token_game import ReplayedGame as ReplayedGame
from .token_game import RowGame as RowGame
from .token_game import TokenGame as TokenGame
from .token_game import effects as effects
from .token_game import game_of as game_of
from .token_pass import NoTokensError as NoTokensError
from .token_pass import TokenPass as TokenPass
