"""Small transformers composed of random parts, and their maps by plain automatic differentiation.

`make(seed)` draws a model as people write them: how it cuts an image, where its class token is, how it attends, pools
and answers, and what else happens on the way. `reference(random_model)` says what the CDAM family must answer: each
attention here reads its tokens through a module `Reads`, which a hook exchanges, and the whole model runs again for
each set of tokens. Nothing of the packages under test is used.

One model at a time: some read a module-level name or an environment variable, which `make` sets.
"""

from .autograd import reference
from .making import make
from .question import RandomModel, Reads

__all__ = ["RandomModel", "Reads", "make", "reference"]
