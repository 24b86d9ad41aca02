"""Folders that appear whole: whoever is killed at any moment leaves the old or the new one, and the next save tidies up."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from gencore import folder as folder_module
from gencore.check import InputError
from gencore.checkpoint import load_tensors, read_json, save_folder
from gencore.folder import appearing, file_for, folder_for, recover, write_file, writing

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killed in forks")

# A process with torch imported forks a writer for each line it reads: "<way> <point> <version>". The writer kills itself
# before its n-th operation on files ("operation 12", in the way without exchange counted from the first rename), before its n-th line
# of Python ("line 340"), or saves version after version until it is killed ("never 0"). With point 0 it prints how many there are.
WRITERS = """
import os, signal, sys
import torch
from gencore import folder as module
from gencore.checkpoint import save_folder
place, exchange = sys.argv[1], module._exchange
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.scandir", "ctypes.dlopen", "shutil.rmtree")

def save(version):
    save_folder(place, {"config.json": {"version": version},
                        "model.safetensors": {"w": torch.full((300,), float(version)), "b": torch.ones(2)},
                        "part/extra.safetensors": {"w": torch.full((7,), float(version))}})

def write(way, point, number, version):
    if way == "rename":
        module._exchange = lambda one, other: False
    while point == "never":
        version += 1
        save(version)
    count, counting = 0, way == "exchange" or point == "line"
    def step():
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
    def operation(event, arguments):
        nonlocal counting
        counting |= event == "os.rename"
        if counting and event in OPERATIONS:
            step()
    def line(frame, event, argument):
        step()
        return line
    sys.settrace(line) if point == "line" else sys.addaudithook(operation)
    save(version)
    sys.settrace(None)
    return count

for words in sys.stdin:
    way, point, number, version = words.split()
    child = os.fork()
    if not child:
        print(write(way, point, int(number), int(version)), flush=True)
        os._exit(0)
    if point == "never":
        print(child, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("killed" if code == -signal.SIGKILL else code, flush=True)
"""


class Writers:
    """The forking process and the checks after each kill."""

    def __init__(self, place):
        self.place = place
        self.process = subprocess.Popen([sys.executable, "-c", WRITERS, str(place)], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, way, point, number=0, version=1):
        """The next line that the process prints: "killed", the number of points, or the writer's process."""
        print(way, point, number, version, file=self.process.stdin, flush=True)
        return self.line()

    def line(self):
        return self.process.stdout.readline().strip()

    def points(self, way, point):
        """How many points a save has at which it can be killed."""
        count = int(self.ask(way, point))
        assert self.line() == "0"
        return count

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def memory():
    """A folder in memory where the system has one: a busy disk makes each save take a tenth of a second."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def writers(memory):
    made = Writers(memory / "model")
    yield made
    made.close()


@pytest.fixture
def disk_writers(tmp_path):
    made = Writers(tmp_path / "model")
    yield made
    made.close()


def save(place, version):
    save_folder(place, {"config.json": {"version": version},
                        "model.safetensors": {"w": torch.full((300,), float(version)), "b": torch.ones(2)},
                        "part/extra.safetensors": {"w": torch.full((7,), float(version))}})


def loaded_version(place):
    """The version that a reader finds, after checking that all of it is of that version."""
    weights, part = load_tensors(place), load_tensors(place / "part")
    version = read_json(place / "config.json")["version"]
    assert torch.equal(weights["w"], torch.full((300,), float(version))) and torch.equal(weights["b"], torch.ones(2))
    assert torch.equal(part["w"], torch.full((7,), float(version)))
    return version


def start_with_notes(place):
    save(place, 0)
    (place / "notes.txt").write_text("mine")


def check_after_kill(place, allowed):
    """The checkpoint is whole and of one of the versions; after another save nothing strays and the user's file is still there."""
    assert loaded_version(place) in allowed
    save(place, 0)
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name]
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "digests.json", "model.safetensors", "notes.txt", "part"]


def test_killed_at_50_random_points_of_saving_leaves_the_old_or_the_new(writers):
    start_with_notes(writers.place)
    draw, found = random.Random(1), set()
    for way in ("exchange", "rename"):
        lines = writers.points(way, "line")
        for _ in range(25):
            save(writers.place, 0)
            assert writers.ask(way, "line", draw.randint(1, lines - 5)) == "killed"
            found.add(read_json(writers.place / "config.json")["version"])
            check_after_kill(writers.place, (0, 1))
    assert found == {0, 1}


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_killed_before_each_operation_on_files(writers, way):
    start_with_notes(writers.place)
    operations = writers.points(way, "operation")
    assert operations > 15
    for number in range(1, operations + 1):
        assert writers.ask(way, "operation", number) == "killed"
        check_after_kill(writers.place, (0, 1))


@pytest.mark.slow
def test_killed_from_outside_at_300_random_moments(disk_writers):
    place, draw, inside = disk_writers.place, random.Random(2), 0
    start_with_notes(place)
    begin = time.perf_counter()
    save(place, 0)
    length = time.perf_counter() - begin
    for turn in range(300):
        pid = int(disk_writers.ask("exchange" if turn % 2 else "rename", "never"))
        time.sleep(draw.uniform(0, 3 * length))
        os.kill(pid, signal.SIGKILL)
        assert disk_writers.line() == "killed"
        inside += len(list(place.parent.iterdir())) > 1
        check_after_kill(place, range(10_000))
    assert inside >= 30                                              # a save was really cut off


def test_a_reader_puts_the_old_folder_back(tmp_path):
    save(tmp_path / "model", 3)
    os.rename(tmp_path / "model", tmp_path / ".model.old")
    assert loaded_version(tmp_path / "model") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_readers_beside_a_writer_see_whole_checkpoints(tmp_path, monkeypatch, way):
    if way == "rename":
        monkeypatch.setattr(folder_module, "_exchange", lambda one, other: False)
    save(tmp_path / "model", 0)
    done, seen = threading.Event(), set()

    def write():
        for version in range(1, 15):
            save(tmp_path / "model", version)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        weights = load_tensors(tmp_path / "model")["w"]
        assert weights.unique().numel() == 1
        seen.add(int(weights[0]))
    writer.join()
    assert len(seen) > 1 and loaded_version(tmp_path / "model") == 14


def test_a_writer_that_lives_keeps_its_temporary_folder(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs, dead = tmp_path / f".model.tmp-{other.pid}", tmp_path / ".model.tmp-999999999"
    theirs.mkdir()
    dead.mkdir()
    save(tmp_path / "model", 1)
    assert theirs.exists() and not dead.exists()
    other.communicate(b"\n")
    save(tmp_path / "model", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_exception_leaves_the_folder_as_it_was(tmp_path):
    save(tmp_path / "model", 5)
    with pytest.raises(RuntimeError), appearing(tmp_path / "model") as fresh:
        (fresh / "half").write_text("x")
        raise RuntimeError
    assert loaded_version(tmp_path / "model") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_renames_put_the_old_one_back_when_the_second_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_exchange", lambda one, other: False)
    save(tmp_path / "model", 5)
    rename = os.rename

    def failing(source, target):
        if ".tmp-" in str(source):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ValueError, match="No space left.*unharmed"):
        save(tmp_path / "model", 6)
    assert loaded_version(tmp_path / "model") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_recover_without_anything_to_recover_does_nothing(tmp_path):
    recover(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    for name, words in (("gone/a.txt", f"^can't write .*: there is no folder {tmp_path / 'gone'}, make it first$"),
                        ("a", "can't write .*/a: Is a directory$")):
        with pytest.raises(InputError, match=words), writing(tmp_path / name):
            write_file(tmp_path / name, b"one")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_can_not_be_written_is_one_sentence(tmp_path):
    write_file(tmp_path / "a.txt", b"one")
    assert folder_for(tmp_path / "b" / "c") == tmp_path / "b" / "c" and file_for(tmp_path / "d" / "e.png").parent.is_dir()
    for door, path, words in ((folder_for, "a.txt", "can't write into .*a.txt: File exists"), (file_for, "a.txt/b.png", "can't write into .*a.txt: "),
                              (file_for, "b", "b is a folder: give the name of a file")):
        with pytest.raises(InputError, match=words):
            door(tmp_path / path)


def test_a_file_appears_whole(tmp_path):
    write_file(tmp_path / "a.txt", b"one")
    write_file(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1
