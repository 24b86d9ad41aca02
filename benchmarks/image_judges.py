"""Judges of pictures, trained here on real ones and on nothing that a model made: which digit, which of so many emoji."""
import torch
import torch.nn.functional as F
from torch import nn

from gencore.checkpoint import load_tensors, save_folder
from gencore.processor import multiplies_bfloat16
from imagegen.data import to_unit


class DigitJudge(nn.Module):
    """pictures (B,3,64,64) in [-1,1] -> logits (B,10); looks at 28x28 grey, the margin cut off."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),          # 14 x 14
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),         # 7 x 7
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(64 * 49, 10))

    def ink(self, pictures):
        """-> (B,1,28,28) in [0,1], 1 where the pen was."""
        ink = (1 - pictures.clamp(-1, 1).mean(1, keepdim=True)) / 2
        return F.avg_pool2d(ink[:, :, 4:60, 4:60], 2)

    def forward(self, pictures):
        return self.layers(self.ink(pictures))

    def features(self, pictures):
        """-> (B,576): what the last layer sees, 64 maps of 7x7, averaged to 3x3."""
        return F.avg_pool2d(self.layers[:11](self.ink(pictures)), 3, stride=2).flatten(1)


class BareDigitJudge(DigitJudge):
    """pictures (B,1,32,32) in [-1,1], white on black as MNIST has them -> logits (B,10); the margin is cut off."""

    def ink(self, pictures):
        return (pictures[:, :, 2:30, 2:30].clamp(-1, 1) + 1) / 2


class EmojiJudge(nn.Module):
    """pictures (B,3,64,64) in [-1,1] -> logits (B,names); looks at 32x32 in colour."""

    def __init__(self, names):
        super().__init__()
        channels = (3, 32, 64, 128, 128)
        parts = []
        for i, (inside, outside) in enumerate(zip(channels, channels[1:])):
            parts += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()] + [nn.MaxPool2d(2)] * (i < 3)
        self.layers = nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, names))

    def forward(self, pictures):
        return self.layers(F.avg_pool2d(pictures.clamp(-1, 1), 2))


class DesignJudge(EmojiJudge):
    """pictures (B,3,64,64) in [-1,1] -> logits (B,designs); looks at all 64x64, since outlines and shades are what designs differ by."""

    def __init__(self, designs):
        super().__init__(designs)
        self.layers[0] = nn.Conv2d(3, 32, 5, stride=2, padding=2)

    def forward(self, pictures):
        return self.layers(pictures.clamp(-1, 1))


def disturbed(pictures, generator):
    """Pictures moved, turned, resized, blurred and tinted a little: what a drawing may do and still show the thing."""
    B = len(pictures)

    def draw(low, high):
        return torch.rand(B, generator=generator) * (high - low) + low

    turn, size = draw(-0.25, 0.25), draw(0.85, 1.2)
    matrix = torch.zeros(B, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = size * turn.cos(), -size * turn.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = size * turn.sin(), size * turn.cos()
    matrix[:, :, 2] = torch.stack((draw(-0.12, 0.12), draw(-0.12, 0.12)), 1)
    moved = F.grid_sample(1 - pictures, F.affine_grid(matrix, pictures.shape, align_corners=False), align_corners=False)
    moved = 1 - moved                                                                   # the outside is white
    return blurred(moved, generator)


def blurred(pictures, generator):
    """Pictures blurred, tinted and made noisy, each by an amount of its own."""
    B = len(pictures)
    soft = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4.0, mode="bilinear")
    mixed = torch.lerp(pictures, soft, torch.rand(B, 1, 1, 1, generator=generator))
    tint = torch.rand(B, 3, 1, 1, generator=generator) * 0.2 - 0.1
    noise = torch.randn(mixed.shape, generator=generator) * torch.rand(B, 1, 1, 1, generator=generator) * 0.15
    return (mixed + tint + noise).clamp(-1, 1)


def train_judge(judge, pixels, labels, *, steps, batch=64, augment=True, seed=0):
    """pixels (N,C,H,W) uint8 as the judge reads them, labels (N,) long -> the judge, in eval mode."""
    def loss(generator):
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        pictures = to_unit(pixels[rows])
        seen = (disturbed(pictures, generator) if augment else pictures).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            logits = judge(seen)
        return F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)

    return taught(judge.to(memory_format=torch.channels_last), loss, steps=steps, seed=seed).to(memory_format=torch.contiguous_format)


def taught(judge, loss, *, steps, lr=2e-3, seed=0):
    """loss(generator) -> scalar of a batch; the judge after so many of them, in eval mode. Prints its loss now and then."""
    torch.manual_seed(seed)
    for module in judge.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()                                                   # the same judge, whatever was drawn before it was made
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    judge.train()
    for step in range(steps):
        value = loss(generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"judge step {step}: loss {value.item():.3f}", flush=True)
    return judge.eval()


def kept_judge(judge, place, examples, *, steps, augment=True):
    """The judge as the folder PLACE-STEPS-steps has it; else trained so long on examples() = (pixels, labels), and kept there: one that learnt for
    another time is another judge."""
    return kept(judge, place.with_name(f"{place.name}-{steps}-steps"), lambda judge: train_judge(judge, *examples(), steps=steps, augment=augment))


def kept(judge, place, train):
    """The judge as the folder `place` has it; else after train(judge), and kept there."""
    if (place / "model.safetensors").is_file():
        judge.load_state_dict(load_tensors(place / "model.safetensors"))
        return judge.eval()
    train(judge)
    save_folder(place, {"model.safetensors": judge.state_dict()})
    return judge


@torch.no_grad()
def verdicts(judge, pictures):
    """pictures (N,C,H,W) in [-1,1] -> best label (N,)."""
    return torch.cat([judge(part).argmax(1) for part in pictures.split(200)])


@torch.no_grad()
def features_of(judge, pictures):
    """pictures (N,C,H,W) in [-1,1] -> the judge's features (N,D)."""
    return torch.cat([judge.features(part) for part in pictures.split(200)])
