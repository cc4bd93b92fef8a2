"""Language models: prompts followed by answers, where images lie in a prompt, and what generation computes anyway."""

from .answered_prompts import AnsweredPrompts as AnsweredPrompts
from .answered_prompts import answered_prompts as answered_prompts
from .answered_prompts import beginning_id as beginning_id
from .answered_prompts import logits_of_answers as logits_of_answers
from .answered_prompts import special_ids as special_ids
from .answered_prompts import token_ids as token_ids
from .answered_prompts import vocabulary_size as vocabulary_size
from .generation import Generated as Generated
from .generation import agrees as agrees
from .generation import generated as generated
from .generation import tail as tail
from .image_tokens import ImagePart as ImagePart
from .image_tokens import ImageTokens as ImageTokens
from .image_tokens import image_token_id as image_token_id
from .image_tokens import image_tokens as image_tokens
