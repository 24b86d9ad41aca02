"""Denoisers of foreign layouts that read prompts, the U-Net of Stable Diffusion 1.5 and the transformer of 3: they learn as well as they open."""
import pytest
import torch

from gencore.diffusion import flow_loss, logit_normal
from gencore.transformer import Memory
from imagegen.joint_dit import JointDiT, JointDiTConfig
from imagegen.unet import UNet, UNetConfig

THINGS, SIDE, WIDTH = 8, 8, 16              # how many, their side, width of the prompts' states
UNET = UNetConfig(channels=3, out_channels=3, size=SIDE, widths=(16, 32), attention=(False, True), layers=1, heads=2, head_width=None, groups=4,
                  context=WIDTH)
JOINT = JointDiTConfig(channels=3, out_channels=3, size=SIDE, places=4, width=48, layers=2, heads=2, context=WIDTH, pooled=4)


def unet():
    model = UNet(UNET)
    return model, lambda x, t, states: model(x, t, memory=Memory(states))


def joint_dit():
    """The vector of the whole prompt is the same for all: the words alone say which thing it is."""
    model = JointDiT(JOINT)
    return model, lambda x, t, states: model(x, t, Memory(states), torch.ones(len(x), 4))


@pytest.mark.parametrize("make, steps, rate", [(unet, 60, 5e-3), (joint_dit, 120, 1e-2)])
def test_it_learns_eight_things_by_their_prompts(make, steps, rate):
    torch.manual_seed(0)
    things, states = torch.randn(THINGS, 3, SIDE, SIDE), torch.randn(THINGS, 3, WIDTH)
    model, network = make()
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.AdamW(model.parameters(), rate)

    def loss(told, rows):
        """Mean loss on so many noisy things, in turn, under these prompts."""
        noise, levels = torch.randn(rows, 3, SIDE, SIDE, generator=generator), logit_normal(rows, generator)
        number = torch.arange(rows) % THINGS
        return flow_loss(lambda x, t: network(x, t, told[number]), things[number], noise, levels).mean()

    with torch.no_grad():
        start = loss(states, 128)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(states, 32).backward()
        optimizer.step()
    with torch.no_grad():
        own, other = loss(states, 128), loss(states.roll(1, 0), 128)
    assert own < 0.5 * start and own < 0.5 * other
