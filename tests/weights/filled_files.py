"""Networks with a number of its own in every tensor, and files of them."""

import pickle

import other_layouts
import torch

from res2net_mm import Res2Net

SMALL = dict(depth=14, base_width=8, base_channels=16, stem_channels=16)


def filled(cls=Res2Net, seed=0, **args):
    """A network no tensor of which is what a constructor makes, in evaluation mode."""
    net = cls(**args).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in net.state_dict().items():
        if not value.is_floating_point():
            value.fill_(seed + 7)
        elif key.endswith('running_var'):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.1, generator=generator)
    return net


def bits(net_or_state):
    """Every bit of a state dict."""
    net_or_state = getattr(net_or_state, 'state_dict', lambda: net_or_state)()
    return {key: value.numpy().tobytes() for key, value in net_or_state.items()}


def write_paddle(state, path):
    """As ``paddle.save`` writes PaddleClas's network."""
    path.write_bytes(pickle.dumps(other_layouts.as_arrays(other_layouts.paddle(state)), protocol=2))


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call
