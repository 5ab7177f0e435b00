"""Rigid motion of the head from volume to volume, and its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medxai.prepare.brain.bold import Bold

Array = npt.NDArray[np.float64]
#: Radius of the sphere on which rotations become millimetres (Power et al. 2012).
_HEAD_MM = 50.0
#: Standard deviation in mm of the smoothing before registration, of which interpolation has less to spoil.
_SMOOTHING_MM = 2.5
#: Voxels compared: every second one along each axis of the middle volume with at least this share of its brightest.
_EVERY, _BRIGHT = 2, 0.1
_MOST_STEPS, _SMALL_STEP = 30, 1e-4


def estimate_motion(bold: Bold, *, apply: bool = True) -> tuple[Bold, Array]:
    """Register every volume rigidly to the middle one: least squares of the intensities by Gauss-Newton.

    The step is that of the inverse compositional form (Baker and Matthews 2004), whose Jacobian belongs to the middle
    volume and is made once. Each volume starts where its neighbour ended.

    Args:
        bold: the series.
        apply: bring the volumes onto each other (cubic splines); otherwise only measure.

    Returns:
        The series, and ``[T, 6]``: translations along x, y, z in mm (LPS) and rotations about x, y and z in radians
        (applied in the order z, x, y as intrinsic turns) of the head from the middle volume to each volume, about the
        centre of the grid.
    """
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    linear = bold.affine[:3, :3]
    sigma = _SMOOTHING_MM / np.linalg.norm(linear, axis=0)
    centre = linear @ ((np.array(bold.grid) - 1) / 2)
    inverse = np.linalg.inv(linear)
    middle = bold.volumes // 2
    fixed = ndimage.gaussian_filter(bold.data[..., middle].astype(np.float64), sigma, mode="nearest")
    index = np.stack(np.meshgrid(*(np.arange(1, n - 1, _EVERY) for n in bold.grid), indexing="ij"), -1).reshape(-1, 3)
    index = index[fixed[tuple(index.T)] > _BRIGHT * fixed.max()]
    values = fixed[tuple(index.T)]
    slopes = np.stack([axis[tuple(index.T)] for axis in np.gradient(fixed)], -1) @ inverse  # per mm
    points = index @ linear.T - centre
    jacobian = np.column_stack([slopes, np.cross(points, slopes)])
    solve = np.linalg.pinv(jacobian.T @ jacobian) @ jacobian.T

    def places(pose: Array, of: Array) -> Array:
        """Voxel indices of where points of the middle volume are in another one."""
        return np.asarray((of @ pose[:3, :3].T + pose[:3, 3] + centre) @ inverse.T)

    poses = np.repeat(np.eye(4)[None], bold.volumes, 0)
    for order in (range(middle + 1, bold.volumes), range(middle - 1, -1, -1)):
        pose = np.eye(4)
        for n in order:
            moving = ndimage.gaussian_filter(bold.data[..., n].astype(np.float64), sigma, mode="nearest")
            moving = ndimage.spline_filter(moving, order=3, mode="nearest")
            for _ in range(_MOST_STEPS):
                seen = ndimage.map_coordinates(moving, places(pose, points).T, order=3, mode="nearest", prefilter=False)
                step = solve @ (seen - values)
                change = np.eye(4)
                change[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix()
                change[:3, 3] = step[:3]
                pose = pose @ np.linalg.inv(change)
                if np.abs(step[:3]).sum() + _HEAD_MM * np.abs(step[3:]).sum() < _SMALL_STEP:
                    break
            poses[n] = pose
    turns = Rotation.from_matrix(poses[:, :3, :3]).as_euler("ZXY")
    parameters = np.column_stack([poses[:, :3, 3], turns[:, [1, 2, 0]]])
    if not apply:
        return bold, parameters
    moved = bold.data.copy()
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in bold.grid), indexing="ij"), -1).reshape(-1, 3)
    everywhere = grid @ linear.T - centre
    for n in range(bold.volumes):
        if n != middle:
            where = places(poses[n], everywhere).T
            found = ndimage.map_coordinates(bold.data[..., n].astype(np.float64), where, order=3, mode="nearest")
            moved[..., n] = found.reshape(bold.grid)
    return replace(bold, data=moved, notes=(*bold.notes, "realigned to the middle volume")), parameters


def framewise_displacement(parameters: Array) -> Array:
    """Sum of the absolute changes of the six parameters, rotations on a sphere of 50 mm (Power et al. 2012).

    Args:
        parameters: ``[T, 6]``: mm, then radians.

    Returns:
        ``[T]`` mm; 0 for the first volume.
    """
    steps = np.abs(np.diff(parameters, axis=0, prepend=parameters[:1]))
    return np.asarray(steps[:, :3].sum(1) + _HEAD_MM * steps[:, 3:].sum(1), np.float64)
