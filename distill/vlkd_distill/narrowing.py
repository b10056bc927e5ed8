"""Makes a network's layers as narrow as stored weights are, so that a pruned student can be loaded.

A pruned network is its architecture with fewer channels. The shapes of its tensors say how many; no record of what was
taken away is needed, and nothing but tensors is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def fit(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Narrow convolutions, linear layers and batch norms to the stored shapes, in place; values are left undefined.

    Only channels are taken away: a tensor of another rank, or with more channels or another kernel than the
    architecture has, is left for `load_state_dict` to complain about.

    Args:
        network: as the architecture gives it.
        tensors: stored weights by name.
    """
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
            continue
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        own = {key: tensor for key, tensor in held if tensor.dim()}  # a count of batches has no channels
        stored = {key: tensors.get(f"{name}.{key}") for key in own}
        if not all(tensor is not None and _narrower(tensor, own[key]) for key, tensor in stored.items()):
            continue
        for key, tensor in stored.items():
            assert tensor is not None
            if tensor.shape == own[key].shape:
                continue
            fresh = own[key].new_empty(tensor.shape)
            if isinstance(own[key], nn.Parameter):
                module.register_parameter(key, nn.Parameter(fresh, requires_grad=own[key].requires_grad))
            else:
                module.register_buffer(key, fresh)
        _count(module)


def _narrower(stored: Tensor, own: Tensor) -> bool:
    """Whether one tensor is another with some of its channels, which lie along the first two axes."""
    if stored.dim() != own.dim() or stored.shape[2:] != own.shape[2:]:
        return False
    return all(0 < few <= many for few, many in zip(stored.shape, own.shape, strict=True))


def _count(module: nn.Module) -> None:
    """Bring a layer's own account of its channels in line with its weights."""
    if isinstance(module, nn.Conv2d):
        outs, ins = module.weight.shape[:2]
        if module.groups > 1 and ins == 1:  # depthwise: as many groups as there are channels to read
            module.groups = module.groups * outs // module.out_channels
        module.out_channels, module.in_channels = outs, ins * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm) and module.weight is not None:
        module.num_features = len(module.weight)
