"""Independent judges of spoken digits, which digit and which speaker, trained on real training clips only, never on what a model made."""
import torch
import torch.nn.functional as F
from torch import nn

from audiogen.audio import level
from audiogen.mel import LogMel

RATE, LENGTH = 8000, 8000               # Hz; every clip is centred in one second


class Judge(nn.Module):
    """waveforms (B,L) prepared by `prepare` -> logits (B,classes): four convolutions over a log-mel picture."""

    def __init__(self, classes, channels=(24, 48, 64, 96)):
        super().__init__()
        self.mel = LogMel(RATE, 40, 256, 80, floor=1e-3)                 # the floor hides the rooms' background noise
        sizes = (1, *channels)
        self.blocks = nn.Sequential(*[
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in zip(sizes, sizes[1:])])
        self.head = nn.Linear(2 * channels[-1] * 2, classes)
        self.drop = nn.Dropout(0.2)

    def features(self, waveforms, generator=None):
        """(B,L) -> log-mel (B,1,P,T), masked at random when a generator is given."""
        mel = (self.mel(waveforms) + 5) / 2                              # (B, P, T)
        if generator is not None:
            mel = masked(mel, generator)
        return mel[:, None]

    def forward(self, waveforms, generator=None):
        maps = self.blocks(self.features(waveforms, generator))          # (B, D, P / 16, T / 16)
        flat = maps.flatten(1, 2)                                        # (B, 2 D, T / 16)
        return self.head(self.drop(torch.cat([flat.mean(-1), flat.amax(-1)], 1)))


def prepare(waveform):
    """(L,) -> (LENGTH,): trimmed at -40 dB of the loudest 10 ms, at equal loudness, centred in one second."""
    frames = waveform[:len(waveform) // 80 * 80].reshape(-1, 80).square().mean(-1)
    active = (frames >= 1e-4 * frames.max()).nonzero()[:, 0]
    waveform = waveform[int(active[0]) * 80:(int(active[-1]) + 1) * 80]
    waveform = level(waveform, RATE)
    start = max(0, (len(waveform) - LENGTH) // 2)
    waveform = waveform[start:start + LENGTH]
    left = (LENGTH - len(waveform)) // 2
    return F.pad(waveform, (left, LENGTH - len(waveform) - left))


def masked(mel, generator):
    """mel (B,P,T) with one band of bands and one stretch of time at the floor."""
    B, P, T = mel.shape
    for axis, size, widest in ((1, P, 6), (2, T, 12)):
        width = torch.randint(0, widest + 1, (B, 1), generator=generator)
        first = torch.randint(0, size - widest, (B, 1), generator=generator)
        place = torch.arange(size)[None]                                 # (1, size)
        hidden = (place >= first) & (place < first + width)              # (B, size)
        mel = mel.masked_fill(hidden.unsqueeze(3 - axis), float(mel.min()))
    return mel


def augmented(waveforms, speeds, generator):
    """(B,LENGTH) -> the same, with another speed (a whole batch's), noise at 15-50 dB, a spectral tilt and a shift in time."""
    B = len(waveforms)
    if speeds:
        speed = float(torch.empty(()).uniform_(0.85, 1.18, generator=generator))
        waveforms = F.interpolate(waveforms[:, None], scale_factor=1 / speed, mode="linear", recompute_scale_factor=False)[:, 0]
        spare = waveforms.shape[1] - LENGTH
        waveforms = F.pad(waveforms, (-(spare // 2), -(spare - spare // 2)))
    tilt = torch.empty(B, 1).uniform_(-0.4, 0.4, generator=generator)
    waveforms = waveforms + tilt * F.pad(waveforms, (1, -1))
    decibels = torch.empty(B, 1).uniform_(15, 50, generator=generator)
    noise = torch.randn(waveforms.shape, generator=generator) * waveforms.square().mean(-1, keepdim=True).sqrt() * 10 ** (-decibels / 20)
    shift = int(torch.randint(-400, 401, (), generator=generator))
    return torch.roll(waveforms + noise, shift, 1)


def train(clips, labels, *, epochs, speeds, seed=0):
    """clips (M,LENGTH), labels (M,) -> a Judge. `speeds`: other speeds in training (they would change a speaker)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(int(labels.max()) + 1)
    steps = epochs * (len(clips) // 64)
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    judge.train()
    for _ in range(epochs):
        order = torch.randperm(len(clips), generator=generator)
        for rows in order[:len(clips) // 64 * 64].split(64):
            logits = judge(augmented(clips[rows], speeds, generator), generator)
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
    return judge.eval()


@torch.inference_mode()
def answers(judge, clips):
    """clips (M,LENGTH) -> the judge's choices (M,)."""
    return torch.cat([judge(part).argmax(-1) for part in clips.split(100)])
