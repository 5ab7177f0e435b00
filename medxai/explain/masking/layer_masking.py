"""Layer masking (Balasubramanian and Feizi 2022, arXiv:2211.14646) for networks as they are.

The network runs its own code on a `MaskedTensor`; only rules for torch functions are needed, none for an
architecture. Nothing of the network is replaced: hooks that follow which module is running come and go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medxai.errors import ExplainError
from medxai.explain.masking.masked_tensor import Context, MaskedTensor


class LayerMasked:
    """A network that takes a mask beside its image, for the time of a ``with`` block.

    Inside the block the network is in evaluation mode and turns a `MaskedTensor` into a plain output. Calls with
    plain tensors work as ever. ``with LayerMasked(network) as masked: output = masked(x, m)``.

    Args:
        network: a convolutional network; left as it was.
        renormalise: average pooling divides by the valid share of each window; the published form does not.
    """

    def __init__(self, network: nn.Module, *, renormalise: bool = False) -> None:
        self.network = network
        self.context = Context(renormalise)
        self._handles: list[RemovableHandle] = []
        self._training: list[nn.Module] = []

    def __enter__(self) -> Self:
        """Watch modules, switch to evaluation."""
        self._training = [module for module in self.network.modules() if module.training]
        for module in self._training:
            module.training = False
        for name, module in self.network.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name, module)))
            self._handles.append(module.register_forward_hook(self._leave(root=not name)))
        return self

    def __exit__(self, *_: object) -> None:
        """Give the network back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._training:
            module.training = True
        self._training.clear()

    def __call__(self, x: Tensor, m: Tensor) -> Any:
        """Output of the network for ``x [N, C, *S]`` of which ``m [N, 1, *S]`` is kept (above 0.5).

        Raises:
            ExplainError: a module does something with the masked map that has no rule; it is named.
        """
        return self.network(MaskedTensor(x, (m > 0.5).to(x.dtype), self.context))

    def _enter(self, name: str, module: nn.Module) -> Any:
        label = f"{name or 'the network'} ({type(module).__name__})"

        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            if not name:
                self.context.modules.clear()
            self.context.modules.append(label)

        return hook

    def _leave(self, *, root: bool) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Any) -> Any:
            self.context.modules.pop()
            return plain(output) if root else None

        return hook


def plain(output: Any) -> Any:
    """The same output with values in place of masked tensors."""
    if isinstance(output, MaskedTensor):
        if output.border is not None:
            msg = "layer masking: the network ends with a padding"
            raise ExplainError(msg)
        return output.x
    if isinstance(output, Mapping):
        return {key: plain(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(plain(value) for value in output)
    return output
