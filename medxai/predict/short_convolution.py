"""3 x 3 convolutions of small planes with fewer multiplications, in OpenVINO models.

Toom-Cook: outputs of a tile of m positions are coefficients of a product of polynomials, known from its values at
m + 2 points. Along two axes that is (m + 2)^2 products of channel matrices in place of 9 m^2. Deep layers of
classifiers have few positions and many channels: there the products are matrix products of good size and bringing
values to the points and back costs little. Elsewhere it does not pay and the convolution stays (see
``docs/evidence/prepared_backends.md``).

The rounding error grows with m, by a few times at m = 6; preparation compares outputs before it stores anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Part of the name of the backend: what was proven with other products is prepared again.
VERSION = 2
#: Outputs for each tile, largest plane, fewest channels and fewest rows of a product where it was seen to pay.
_TILES, _LARGEST, _CHANNELS, _ROWS = (3, 4, 5, 6), 16, 128, 16
#: Below this many positions both axes are transformed by one matrix.
_DENSE = 64
#: Positions before samples and channels; the way back is the same.
_SWAP = (2, 3, 0, 1)
_BY_VALUE = frozenset({"Relu", "Add"})
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)


@dataclass(frozen=True)
class Axis:
    """One axis of a plane cut into tiles.

    Attributes:
        into: ``[points, tiles, positions]`` brings inputs to the points, with a border of zeros.
        back: ``[positions, points, tiles]`` brings products back.
        kernel: ``[points, 3]`` brings the kernel to the points.
    """

    into: Array
    back: Array
    kernel: Array


def axis(positions: int, tile: int) -> Axis:
    """Matrices for an axis of `positions`, `tile` outputs at a time."""
    points = tile + 2
    back, kernel, into = _toom_cook(tile)
    tiles = -(-positions // tile)
    whole = np.zeros((points, tiles, positions))
    out = np.zeros((positions, points, tiles))
    for number in range(tiles):
        for offset in range(points):
            place = number * tile + offset - 1
            if 0 <= place < positions:
                whole[:, number, place] = into[:, offset]
        for offset in range(min(tile, positions - number * tile)):
            out[number * tile + offset, :, number] = back[offset]
    return Axis(whole, out, kernel)


def _toom_cook(tile: int) -> tuple[Array, Array, Array]:
    """``y = back (kernel g * into d)`` for ``tile`` outputs of a 3-tap filter, by transposition."""
    points = tile + 2

    def values(degree: int) -> Array:
        matrix = np.zeros((points, degree))
        matrix[:-1] = np.asarray(_POINTS[: points - 1])[:, None] ** np.arange(degree)
        matrix[-1, -1] = 1  # the point at infinity
        return matrix

    into = np.linalg.inv(values(points)).T
    size = np.abs(into).max(1)
    return values(tile).T * size, values(3), into / size[:, None]


def choose_tile(batch: int, channels: Sequence[int], plane: Sequence[int]) -> int | None:
    """Outputs for each tile along both axes, or None where the convolution should stay.

    Args:
        batch: samples at once.
        channels: in and out.
        plane: height and width.
    """
    if len(plane) != 2 or min(plane) < 3 or max(plane) > _LARGEST or min(channels) < _CHANNELS:
        return None

    def tiles(tile: int) -> int:
        return int(np.prod([-(-side // tile) for side in plane]))

    best = min(_TILES, key=lambda tile: (tile + 2) ** 2 * tiles(tile))
    few = (best + 2) ** 2 * tiles(best) <= 0.4 * 9 * plane[0] * plane[1]
    return best if few and batch * tiles(best) >= _ROWS else None


def shorten(ov: Any, model: Any) -> int:
    """Replace what pays in a model of fixed shape; returns how many convolutions.

    Args:
        ov: the `openvino` module.
        model: changed in place.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weights = node.input_value(1).get_node().get_data()
        stated = node.get_attributes()
        same = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}
        if weights.shape[2:] != (3, 3) or any(list(stated[name]) != value for name, value in same.items()):
            continue
        batch, channels, *plane = node.input_value(0).shape
        tile = choose_tile(batch, (channels, len(weights)), plane)
        if tile is None:
            continue
        last, scale, shift = _normalisation(node)
        scaled = weights.astype(np.float64) * scale[:, None, None, None]
        made = _products(ov, node.input_value(0), scaled, shift, tile)
        last.output(0).replace(made.output(0))
        count += 1
    if count:
        _keep_positions_first(ov, model)
    model.validate_nodes_and_infer_types()
    return count


def _keep_positions_first(ov: Any, model: Any) -> None:
    """Swap axes once before and after a chain of products, not round each of them.

    What works value by value takes its operands as they come and swaps its result; a swap of a swap is nothing.
    """
    for node in model.get_ordered_ops():
        operands = node.input_values()
        if _swaps(node) and _swaps(operands[0].get_node()):
            node.output(0).replace(operands[0].get_node().input_value(0))
        elif node.get_type_name() in _BY_VALUE and any(_swaps(value.get_node()) for value in operands):
            if not all(value.shape == node.output(0).shape or _by_channel(value) for value in operands):
                continue
            given = [v.get_node().input_value(0) if _swaps(v.get_node()) else _swap(ov, v) for v in operands]
            made = ov.opset15.relu(*given) if len(given) == 1 else ov.opset15.add(*given)
            node.output(0).replace(_swap(ov, made).output(0))


def _swap(ov: Any, value: Any) -> Any:
    """Positions before samples and channels, or back."""
    return ov.opset15.transpose(value, ov.opset15.constant(np.asarray(_SWAP, dtype=np.int64)))


def _by_channel(value: Any) -> bool:
    """A constant for each channel."""
    return value.get_node().get_type_name() == "Constant" and len(value.shape) == 4


def _swaps(node: Any) -> bool:
    if node.get_type_name() != "Transpose":
        return False
    return tuple(node.input_value(1).get_node().get_data().tolist()) == _SWAP


def _normalisation(node: Any) -> tuple[Any, Array, Array]:
    """What follows a convolution alone and can be part of it: last node, factor and summand of each channel."""
    features = node.output(0).get_partial_shape()[1].get_length()
    after = list(node.output(0).get_target_inputs())
    if len(after) != 1 or after[0].get_node().get_type_name() != "BatchNormInference":
        return node, np.ones(features), np.zeros(features)
    norm = after[0].get_node()
    found = []
    for place in range(1, 5):
        source = norm.input_value(place).get_node()
        if source.get_type_name() == "Convert":
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant":
            return node, np.ones(features), np.zeros(features)
        found.append(source.get_data().astype(np.float64))
    gamma, beta, mean, variance = found
    factor = gamma / np.sqrt(variance + norm.get_attributes()["epsilon"])
    return norm, factor, beta - mean * factor


def _products(ov: Any, x: Any, weights: Array, shift: Array, tile: int) -> Any:
    """Nodes for ``conv(x) + shift``; positions come first in between, so that every step is a matrix product."""
    op = ov.opset15
    batch, channels, height, width = x.shape
    features, points = len(weights), tile + 2
    down, across = axis(height, tile), axis(width, tile)
    kernel = np.einsum("pi,kcij,qj->pqck", down.kernel, weights, across.kernel)
    rows, columns = down.into.shape[1], across.into.shape[1]

    def whole(values: Sequence[int]) -> Any:
        return op.constant(np.asarray(values, dtype=np.int64))

    def shaped(node: Any, *shape: int) -> Any:
        return op.reshape(node, whole(shape), False)

    def times(left: Any, right: Any) -> Any:
        def ready(value: Any) -> Any:
            return op.constant(np.ascontiguousarray(value, np.float32)) if isinstance(value, np.ndarray) else value

        return op.matmul(ready(left), ready(right), False, False)

    v = _swap(ov, x)
    if height * width <= _DENSE:
        into = np.einsum("pth,quw->pqtuhw", down.into, across.into).reshape(-1, height * width)
        back = np.einsum("hpt,wqu->hwpqtu", down.back, across.back).reshape(height * width, -1)
        v = times(into, shaped(v, height * width, batch * channels))
        v = shaped(v, points**2, rows * columns * batch, channels)
        y = times(v, kernel.reshape(points**2, channels, features))
        y = times(back, shaped(y, -1, batch * features))
    else:
        v = times(down.into.reshape(-1, height), shaped(v, height, -1))
        v = times(across.into.reshape(1, -1, width), shaped(v, points * rows, width, -1))
        v = shaped(v, points, rows, points, columns * batch, channels)
        y = times(v, kernel[:, None])
        y = shaped(y, points * rows, points * columns, batch * features)
        y = times(across.back.reshape(1, width, -1), y)
        y = times(down.back.reshape(height, -1), shaped(y, points * rows, -1))
    y = op.add(shaped(y, height, width, batch, features), op.constant(shift.astype(np.float32)))
    return _swap(ov, y)
