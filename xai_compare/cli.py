"""The console command."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from ._command_line import parser, settings_of
from ._settings import DeviceError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exits with 0 if the run is finished; 3 if it is, but a method and metric failed on every sample; 1 if it could not
    begin or a process of it died, 2 on a wrong option or device; 130 or 143 if it was stopped, and can go on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    try:
        settings = settings_of(args)
        from ._command import run  # takes seconds
    except (TypeError, ValueError, OSError) as error:
        _stop(str(error), 2 if isinstance(error, DeviceError) else 1)
    except ModuleNotFoundError as error:
        _stop(f"it needs {error.name}, which is not installed: pip install 'xai-discern[compare]'.", 1)
    run(settings, args, given)


def _stop(message: str, code: int) -> NoReturn:
    print(f"xai-compare: {message}", file=sys.stderr)
    sys.exit(code)
