"""What is asked of any model, answered in one place: output, evaluation mode, device and type, image layout."""

from .digests import add_tensor as add_tensor
from .digests import digest_of as digest_of
from .evaluation_mode import evaluated as evaluated
from .evaluation_mode import evaluation_mode as evaluation_mode
from .image_layout import channels_first as channels_first
from .image_layout import is_image as is_image
from .outputs import OutputChoice as OutputChoice
from .outputs import logits_of as logits_of
from .outputs import only_tensor as only_tensor
from .outputs import output_tensor as output_tensor
from .parts import part_named as part_named
from .placement import placement_of as placement_of
from .stand_in import with_output as with_output
from .state_key import state_key as state_key
from .state_key import unchanged as unchanged
from .unwrapping import modules_of as modules_of
from .unwrapping import root_module as root_module
from .unwrapping import uncompiled as uncompiled
