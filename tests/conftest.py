"""What holds for every test: no network, one thread, known seeds."""

import os
import random
import socket

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}

import numpy as np
import pytest
import torch

import gencore  # noqa: F401  (its torchaudio guard stands before transformers and diffusers)

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")    # gloo's processes talk to each other there


class NetworkUsed(RuntimeError):
    """A test tried to leave the machine."""


def is_local(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    return not host or host == socket.gethostname() or host.startswith(LOOPBACK)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Sockets reach this machine only; names of other machines are not looked up."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if isinstance(address, tuple) and not is_local(address[0]):
            raise NetworkUsed(f"tests run without network, got a connection to {address[0]}")
        return connect(self, address)

    def guarded_lookup(host, *args, **kwargs):
        if not is_local(host):
            raise NetworkUsed(f"tests run without network, got a look-up of {host}")
        return lookup(host, *args, **kwargs)

    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_lookup
    yield
    socket.socket.connect, socket.getaddrinfo = connect, lookup


@pytest.fixture(autouse=True)
def known_state():
    """Every test starts from the same seeds and one thread, whatever ran before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries under test draw from the old global state)
    random.seed(0)
