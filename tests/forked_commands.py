"""`xai-compare` in processes of its own that need not import it again: forks of one process that has.

commands = Commands(folder)
job = commands.start(["--limit", "4"], processes=2)  # as torchrun --nproc-per-node 2 -m xai_compare --limit 4
code, said = commands.wait(job)
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

PATIENCE = 120  # seconds
HUNG = 1000


class Job(NamedTuple):
    pid: int
    log: Path


class Commands:
    def __init__(self, folder):
        self._folder, self._count = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, arguments, processes=1):
        self._count += 1
        log = self._folder / f"log{self._count}"
        log.touch()  # a job may be killed before it opens it
        return Job(
            self._ask({"arguments": [str(one) for one in arguments], "processes": processes, "log": str(log)}), log
        )

    def wait(self, job):
        """Its exit code (as of a shell) and what it printed."""
        code = self._ask({"wait": job.pid})
        return code, job.log.read_text()

    def run(self, arguments, processes=1):
        return self.wait(self.start(arguments, processes))

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def _become(request):
    """What a fork does."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from xai_compare.cli import main

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        if request["processes"] == 1:
            main(request["arguments"])
        else:  # what torchrun does
            config = LaunchConfig(
                *(1, 1, request["processes"]),
                run_id="forked",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                start_method="fork",
            )
            elastic_launch(config, main)(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ended(pid):
    """Its exit code; a process that hangs is killed."""
    for _ in range(PATIENCE * 100):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


def _serve():
    import pytorch_grad_cam  # noqa: F401 # all that takes long
    import timm  # noqa: F401
    import torch

    import xai_compare._command
    import xai_compare.cli  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _ended(request["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
