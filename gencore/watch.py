"""What a run is told and tells from outside its mathematics: stop signals, time, memory."""
import signal
import sys
import threading

import torch


class StopSignals:
    """While open, Ctrl-C and SIGTERM only set `code` (130, 143), so that the step is finished and saved; a second one stops at once."""

    def __init__(self):
        self.code = 0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.code:
            raise KeyboardInterrupt
        self.code = 128 + number


class Pace:
    """Times the first ten steps of a run and says how long the rest takes and what memory it needs."""

    def __init__(self, steps_left, device, say):
        self.steps_left, self.device, self.say = steps_left, device, say
        self.seconds = []

    def tell(self, seconds):
        """Call once a step; the tenth call speaks (the first of the ten only warms up)."""
        self.seconds.append(seconds)
        if len(self.seconds) == 10:
            each = sorted(self.seconds[1:])[4]                                      # median
            left = self.steps_left - 10
            self.say(f"about {spoken(left * each)} for the {left:,} steps left ({each:.3g} s a step, evaluation not counted); "
                     f"peak memory so far {peak_memory(self.device) / 2**30:.2f} GiB")


def spoken(seconds):
    """Seconds -> "41 s", "12 minutes", "3.4 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def peak_memory(device):
    """Largest memory so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:                                                             # Windows has no such count
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
