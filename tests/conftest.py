"""What holds for every test: no network, one thread, known seeds."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import gencore  # noqa: F401  (its torchaudio guard stands before transformers and diffusers)

settings.register_profile("suite", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile("suite")                        # the same cases each time, however slow the machine
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")    # gloo's processes talk to each other there


ROOT = Path(__file__).parents[1]
HELP = """
import contextlib, io, json, runpy, sys
for name in sys.argv[1:]:
    sys.argv, printed = [name, "--help"], io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")
    print(json.dumps(printed.getvalue()))
"""


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


@pytest.fixture(params=[200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def cases(request):
    """How many cases of a property are drawn: settings(max_examples=cases)(given(...)(holds))()."""
    return request.param


@pytest.fixture(scope="session")
def help_of():
    """Name of a script or module -> what it prints for --help, from a process that has none of pytest's imports: one for all examples."""
    known = {}

    def ask(*names):
        done = subprocess.run([sys.executable, "-c", HELP, *names], cwd=ROOT, capture_output=True, text=True, timeout=300,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})         # from a checkout that is not installed as well
        assert done.returncode == 0, done.stderr[-3000:]
        known.update(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))

    ask(*(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").glob("**/*.py"))))
    return lambda name: known[name] if name in known else ask(name) or known[name]
