"""On the path of the peers' processes alone: lets them import torchvision where its operators do not match torch."""

try:
    from tests.parity.peers import _torchvision

    _torchvision()
except ImportError:
    pass
