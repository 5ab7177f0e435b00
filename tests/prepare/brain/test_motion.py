"""Planted rigid motion is found and undone, on an oblique, anisotropic grid."""

from __future__ import annotations

import numpy as np
import pytest

from medxai.prepare.brain.bold import Bold
from medxai.prepare.brain.motion import estimate_motion, framewise_displacement

AFFINE = np.eye(4)
AFFINE[:3, :3] = (
    np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    @ np.linalg.qr(np.eye(3) + 0.15 * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]))[0]
    @ np.diag([4.0, 3.0, 3.2])
)
AFFINE[:3, 3] = [-40, -60, -30]
SHAPE = (16, 30, 28)


def head(points: np.ndarray) -> np.ndarray:
    """A smooth, lopsided blob: analytic, so that a moved one needs no interpolation."""
    centres = [
        (0, 0, 0, 26, 900),
        (12, 5, 4, 9, 500),
        (-10, 14, -6, 8, -350),
        (4, -16, 8, 7, 400),
        (-6, -8, -9, 6, 300),
    ]
    value = np.zeros(points.shape[:-1])
    for x, y, z, width, height in centres:
        value += height * np.exp(-((points - [x, y, z]) ** 2).sum(-1) / (2 * width**2))
    return value


def moved(parameters: np.ndarray) -> np.ndarray:
    """The head, of which the point that was at p (about the grid's centre) is now at R p + t."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    centre = AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + AFFINE[:3, 3]
    points = index @ AFFINE[:3, :3].T + AFFINE[:3, 3] - centre
    rx, ry, rz = parameters[3:]
    x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    rotation = z @ x @ y
    return head((points - parameters[:3]) @ rotation)


def test_planted_motion_is_found_and_undone() -> None:
    planted = np.zeros((5, 6))
    planted[0] = [0.5, -0.3, 0.2, 0, 0.01, 0]
    planted[3] = [1.0, 0.5, -0.8, 0.02, -0.01, 0.015]
    planted[4] = [-1.2, 0.1, 1.0, -0.02, 0.03, 0.0]
    data = np.stack([moved(p) for p in planted], -1).astype(np.float32)
    bold = Bold(data, AFFINE, 2.0, "x")
    done, found = estimate_motion(bold)
    assert np.abs(found[:, :3] - planted[:, :3]).max() < 0.05
    assert np.abs(found[:, 3:] - planted[:, 3:]).max() < 0.003
    inner = (slice(3, -3), slice(4, -4), slice(4, -4))
    before = np.abs(data - data[..., 2:3])[inner].mean((0, 1, 2))
    after = np.abs(done.data - data[..., 2:3])[inner].mean((0, 1, 2))
    assert (after[[0, 3, 4]] < 0.25 * before[[0, 3, 4]]).all()
    again, same = estimate_motion(bold)
    assert np.array_equal(same, found)
    assert np.array_equal(again.data, done.data)
    kept, _ = estimate_motion(bold, apply=False)
    assert kept.data is bold.data


def test_framewise_displacement_of_known_steps() -> None:
    parameters = np.zeros((3, 6))
    parameters[1] = [1, -2, 0, 0.01, 0, 0]
    found = framewise_displacement(parameters)
    assert found.tolist() == pytest.approx([0, 3.5, 3.5])
