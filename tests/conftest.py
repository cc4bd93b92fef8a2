import random
import socket

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the models are so small that threads wait for one another, and each worker has a core


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
