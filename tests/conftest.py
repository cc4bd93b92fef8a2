import os
import random
import socket

import numpy as np
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise RuntimeError("tests reach no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
