"""Compiled spatial maps: points and grids mapped through a flow, and the inverse problem for given points.

A flow is (A, B, C, 3) float32, sampled trilinearly and extrapolated with its nearest border value. A position is a
position on the flow's lattice, in voxels; a miss is the residual distance between a mapped position and its target.
"""

import numpy as np
from numba import njit

from ...host.kernels import in_slices
from .rows import TILE, add_row, linear_row, tiles

BLOCK = 256  # points that one thread solves in sequence; each starts from the previous solution
NEAR = 3.0  # distance in lattice steps up to which the previous solution is a better start than the flow's trend
STRIDE = 2.0  # longest step of Newton's method, in lattice steps
NEWTON_STEPS, HALVINGS = 30, 5
DAMPINGS = (0.25, 0.0625)  # of the fixed-point iteration, tried in turn where Newton's method fails
DAMPED_STEPS = 200  # in units of 1 / damping
DIVERGED = 100.0  # times the initial squared miss, at which the iteration is given up
FLAT = 1e-6  # determinant, relative to the trend's, below which the Jacobian counts as singular
U = np.uintp  # unsigned indices avoid the test for negative ones

_inlined = njit(forceinline=True, error_model="numpy")
_apart = njit(error_model="numpy")  # kept out of the hot loops


@_inlined
def _clamped(x, size):
    """Return x clamped to 0 to size - 1; 0 for NaN."""
    return min(x, size - 1.0) if x > 0 else 0.0


@_inlined
def _flow_at(flow, x, y, z):
    """Return the trilinear flow at a position, clamped to the border."""
    size_i, size_j, size_k, _ = flow.shape
    x, y, z = _clamped(x, size_i), _clamped(y, size_j), _clamped(z, size_k)
    a, b, c = min(int(x), size_i - 2), min(int(y), size_j - 2), min(int(z), size_k - 2)
    fx, fy, fz = np.float32(x - a), np.float32(y - b), np.float32(z - c)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    f0, f1, f2 = np.float32(0), np.float32(0), np.float32(0)
    for da in range(2):
        for db in range(2):
            for dc in range(2):
                weight = (fx if da else gx) * (fy if db else gy) * (fz if dc else gz)
                vector = flow[U(a + da), U(b + db), U(c + dc)]
                f0 += weight * vector[0]
                f1 += weight * vector[1]
                f2 += weight * vector[2]
    return f0, f1, f2


@in_slices(over=tiles)
def displacement(begin, end, flow, to_flow, base, linear, result):
    """Compute ``result(v) = base [v, 1] + linear flow(to_flow [v, 1])`` at the voxels v of a grid; result (3, K, J, I).

    1. positions of a row's voxels in the flow; 2. the flow there; 3. the two matrices.
    """
    _, depth, height, width = result.shape
    across = -(-height // TILE)
    for tile in range(begin, end):
        positions, vectors = np.empty((3, width)), np.empty((3, width), np.float32)
        top, left = tile // across * TILE, tile % across * TILE
        for k in range(top, min(top + TILE, depth)):
            for j in range(left, min(left + TILE, height)):
                for row in range(3):
                    linear_row(to_flow, row, j, k, positions[row])
                for i in range(width):
                    f0, f1, f2 = _flow_at(flow, positions[0, i], positions[1, i], positions[2, i])
                    vectors[0, i], vectors[1, i], vectors[2, i] = f0, f1, f2
                for row in range(3):
                    linear_row(base, row, j, k, positions[row])
                    add_row(linear, row, vectors, positions[row])
                    result[row, k, j] = positions[row]


def _blocks(*arguments):
    """Return the number of blocks of a kernel's points, which are the rows of its last argument."""
    return -(-len(arguments[-1]) // BLOCK)


@_inlined
def _apply_linear(matrix, vector, result):
    """Write ``matrix vector``, with the matrix's first three rows and columns."""
    for row in range(3):
        result[row] = matrix[row, 0] * vector[0] + matrix[row, 1] * vector[1] + matrix[row, 2] * vector[2]


@_inlined
def _apply_affine(matrix, point, result):
    """Write ``matrix [point, 1]`` for a matrix (4, 4)."""
    _apply_linear(matrix, point, result)
    for row in range(3):
        result[row] += matrix[row, 3]


@in_slices(over=_blocks)
def move_points(begin, end, flow, to_flow, base, linear, points, moved):
    """Compute ``moved = base [x, 1] + linear flow(to_flow [x, 1])`` for points x; points and moved (N, 3) float64."""
    position, vector, bend = np.empty(3), np.empty(3), np.empty(3)
    for n in range(begin * BLOCK, min(end * BLOCK, len(points))):
        _apply_affine(to_flow, points[n], position)
        vector[0], vector[1], vector[2] = _flow_at(flow, position[0], position[1], position[2])
        _apply_affine(base, points[n], moved[n])
        _apply_linear(linear, vector, bend)
        for row in range(3):
            moved[n, row] += bend[row]


@in_slices(over=_blocks)
def transform_vectors(begin, end, memory, step, across, matrix, turned):
    """Compute ``turned[n] = matrix v[n]`` for vectors in flat `memory`, `step` apart, components `across` apart."""
    for n in range(begin * BLOCK, min(end * BLOCK, len(turned))):
        x, y, z = memory[n * step], memory[n * step + across], memory[n * step + 2 * across]
        for row in range(3):
            turned[n, row] = matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] * z


@_inlined
def _flow_and_slopes(flow, position, vector, slopes):
    """Write the flow at a position and its derivatives, slopes[component, axis]; 0 along axes where it is clamped."""
    size_i, size_j, size_k, _ = flow.shape
    x, y, z = _clamped(position[0], size_i), _clamped(position[1], size_j), _clamped(position[2], size_k)
    i, j, k = min(int(x), size_i - 2), min(int(y), size_j - 2), min(int(z), size_k - 2)
    fx, fy, fz = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    along_i, along_j, along_k = np.float32(x == position[0]), np.float32(y == position[1]), np.float32(z == position[2])
    i, j, k = U(i), U(j), U(k)
    p, q, r = i + U(1), j + U(1), k + U(1)
    for n in range(3):
        a0, a1, b0, b1 = flow[i, j, k, n], flow[i, j, r, n], flow[i, q, k, n], flow[i, q, r, n]
        c0, c1, d0, d1 = flow[p, j, k, n], flow[p, j, r, n], flow[p, q, k, n], flow[p, q, r, n]
        az, bz, cz, dz = a1 - a0, b1 - b0, c1 - c0, d1 - d0
        a, b, c, d = a0 + fz * az, b0 + fz * bz, c0 + fz * cz, d0 + fz * dz
        low, high = a + fy * (b - a), c + fy * (d - c)
        low_z, high_z = az + fy * (bz - az), cz + fy * (dz - cz)
        vector[n] = low + fx * (high - low)
        slopes[n, 0] = along_i * (high - low)
        slopes[n, 1] = along_j * ((b - a) + fx * ((d - c) - (b - a)))
        slopes[n, 2] = along_k * (low_z + fx * (high_z - low_z))


@_inlined
def _miss(flow, steps, linear, target, position, slopes, rest):
    """Return the squared distance in mm from a mapped position to the target; fill slopes and rest, the difference."""
    _flow_and_slopes(flow, position, rest, slopes)
    for n in range(3):
        there = steps[n, 0] * position[0] + steps[n, 1] * position[1] + steps[n, 2] * position[2] + rest[n]
        rest[n] = target[n] - there
        for axis in range(3):
            slopes[n, axis] += steps[n, axis]
    x = linear[0, 0] * rest[0] + linear[0, 1] * rest[1] + linear[0, 2] * rest[2]
    y = linear[1, 0] * rest[0] + linear[1, 1] * rest[1] + linear[1, 2] * rest[2]
    z = linear[2, 0] * rest[0] + linear[2, 1] * rest[1] + linear[2, 2] * rest[2]
    return x * x + y * y + z * z


@_inlined
def _newton_step(slopes, rest, step):
    """Solve ``slopes step = rest`` and return the determinant of slopes."""
    a, b, c = slopes[0, 0], slopes[0, 1], slopes[0, 2]
    d, e, f = slopes[1, 0], slopes[1, 1], slopes[1, 2]
    g, h, i = slopes[2, 0], slopes[2, 1], slopes[2, 2]
    u, v, w = e * i - f * h, f * g - d * i, d * h - e * g
    determinant = a * u + b * v + c * w
    x, y, z = rest[0] / determinant, rest[1] / determinant, rest[2] / determinant
    step[0] = u * x + (c * h - b * i) * y + (b * f - c * e) * z
    step[1] = v * x + (a * i - c * g) * y + (c * d - a * f) * z
    step[2] = w * x + (b * g - a * h) * y + (a * e - b * d) * z
    return determinant


@_inlined
def _longest(vector):
    return max(abs(vector[0]), abs(vector[1]), abs(vector[2]))


@_apart
def _newton(flow, steps, linear, trend, target, position, enough, work):
    """Run Newton's method with step halving from `position`, updated in place; return (squared miss, determinant).

    Where the Jacobian is nearly singular, a step along the trend replaces Newton's. The determinant is relative to the
    trend's; its sign is the orientation.
    """
    slopes, rest, step, trial = work[:3], work[3], work[4], work[5]
    miss = _miss(flow, steps, linear, target, position, slopes, rest)
    determinant = np.nan
    for _ in range(NEWTON_STEPS):
        determinant = trend[3, 3] * _newton_step(slopes, rest, step)
        if miss <= enough:
            break
        if not abs(determinant) > FLAT:
            _apply_linear(trend, rest, step)
        scale = min(1.0, STRIDE / _longest(step))
        shorter = np.inf
        for _ in range(HALVINGS):
            for axis in range(3):
                trial[axis] = position[axis] + scale * step[axis]
            shorter = _miss(flow, steps, linear, target, trial, slopes, rest)
            if shorter < miss:
                break
            scale *= 0.5
        if not shorter < miss:
            break
        miss = shorter
        position[:] = trial
    return miss, determinant


@_apart
def _damped(flow, steps, linear, trend, target, damping, position, enough, work):
    """Iterate damped steps along the trend from `position`, improving or not; leave the best one found in it."""
    slopes, rest, step, walker = work[:3], work[3], work[4], work[5]
    walker[:] = position
    best = first = _miss(flow, steps, linear, target, walker, slopes, rest)
    for _ in range(int(DAMPED_STEPS / damping)):
        miss = _miss(flow, steps, linear, target, walker, slopes, rest)
        if miss < best:
            best = miss
            position[:] = walker
        if miss <= enough or not miss <= DIVERGED * first:
            break
        _apply_linear(trend, rest, step)
        for axis in range(3):
            walker[axis] += damping * step[axis]


@_apart
def _solve_damped(flow, steps, linear, trend, target, position, enough, miss, work):
    """Solve with damped iteration, then Newton's method, where that alone missed or ended on a fold's reverse side.

    Small damped steps converge only where the map preserves orientation. `position` is the best found; returns its
    squared miss.
    """
    other = work[6]
    for damping in DAMPINGS:
        _apply_affine(trend, target, other)
        _damped(flow, steps, linear, trend, target, damping, other, enough, work)
        found, orientation = _newton(flow, steps, linear, trend, target, other, enough, work)
        upright = found <= enough and orientation > 0
        if upright or not miss <= found:
            miss = found
            position[:] = other
        if upright:
            break
    return miss


@in_slices(over=_blocks)
def solve_points(begin, end, flow, steps, linear, trend, to_target, from_lattice, tolerance, points, found, misses):
    """Solve ``steps w + flow(w) = to_target [y, 1]`` for positions w of points y; ``found = from_lattice [w, 1]``.

    1. a start: the previous solution and a step along the trend, or the trend alone; 2. Newton's method; 3. where that
    fails, or ends on the reverse side of a fold, `_solve_damped`.

    Args:
        flow: (A, B, C, 3).
        steps, linear: (3, 3); `linear` converts differences of targets to mm.
        trend: (4, 4), target -> position by the flow's best affine fit; entry [3, 3] is its determinant.
        to_target, from_lattice: (4, 4), from and to mm.
        tolerance: mm.
        points, found: (N, 3) float64, mm.
        misses: (N,) float64, mm.
    """
    target, last, position, step, work = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty((7, 3))
    enough = tolerance * tolerance
    for block in range(begin, end):
        near = False
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(points))):
            _apply_affine(to_target, points[n], target)
            for axis in range(3):
                step[axis] = target[axis] - last[axis]
            if near and _longest(step) < NEAR:
                _apply_linear(trend, step, last)
                for axis in range(3):
                    position[axis] += last[axis]
            else:
                _apply_affine(trend, target, position)
            miss, orientation = _newton(flow, steps, linear, trend, target, position, enough, work)
            near = miss <= enough and orientation > 0
            if not near:
                miss = _solve_damped(flow, steps, linear, trend, target, position, enough, miss, work)
                near = miss <= enough
            _apply_affine(from_lattice, position, found[n])
            misses[n] = np.sqrt(miss)
            last[:] = target
