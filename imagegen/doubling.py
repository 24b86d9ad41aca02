"""A convolution over a picture of twice the side, without the larger picture."""
import torch.nn.functional as F


def doubled_conv(h, weight, bias):
    """h (B,C,H,W), weight (O,C,3,3) -> (B,O,2H,2W): conv2d(nearest-neighbour doubling of h, padding 1), up to rounding.

    Of the nine places that a kernel sees there, those that are copies of one are summed first: what is left is a transposed convolution of 4x4
    weights with stride 2 (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"), with 4/9 of the products."""
    flipped = weight.transpose(0, 1).flip(2, 3)                                        # (C, O, 3, 3)
    wide = sum(F.pad(flipped, (right, 1 - right, below, 1 - below)) for below in (0, 1) for right in (0, 1))       # (C, O, 4, 4)
    return F.conv_transpose2d(h, wide, bias, stride=2, padding=1)
