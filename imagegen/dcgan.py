"""The networks of 2015 (Radford et al., DCGAN): transposed convolutions and batch normalisation, played by `adversarial.first_loss`: a baseline."""
import torch.nn.functional as F
from torch import nn


class DCGenerator(nn.Module):
    """latents (B,Z) -> pictures (B,C,32,32) in [-1,1]; cfg: a GANConfig of size 32 without labels."""

    def __init__(self, cfg, width=64):
        super().__init__()
        self.cfg = cfg
        sizes = (4 * width, 2 * width, width)
        self.start = nn.ConvTranspose2d(cfg.latent, sizes[0], 4, bias=False)                              # 4 x 4
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in zip(sizes, sizes[1:]))
        self.out = nn.ConvTranspose2d(sizes[-1], cfg.picture_channels, 4, 2, 1)
        start(self)

    def classes(self, labels):
        return None

    def forward(self, latents, classes=None):
        h = self.start(latents[:, :, None, None])
        for norm, up in zip(self.norms, (*self.ups, self.out)):
            h = up(F.relu(norm(h)))                                                # twice the side
        return h.tanh()


class DCCritic(nn.Module):
    """pictures (B,C,32,32) -> scores (B,)."""

    def __init__(self, cfg, width=64):
        super().__init__()
        sizes = (cfg.picture_channels, width, 2 * width, 4 * width)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(size) for size in sizes[2:])])
        self.score = nn.Conv2d(sizes[-1], 1, 4)
        start(self)

    def forward(self, pictures, labels=None):
        h = pictures
        for down, norm in zip(self.downs, self.norms):
            h = F.leaky_relu(norm(down(h)), 0.2)                                   # half the side
        return self.score(h).flatten()


def start(network):
    """Weights as DCGAN begins with them."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
