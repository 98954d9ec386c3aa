"""Compiled sums for the affine initialisation. Every sum runs in a fixed order, so equal inputs give equal bits.

Both kernels visit each voxel (i, j, k) of the fixed image, sample the moving image at ``matrix [i, j, k, 1]`` (its
voxels) and skip voxels that fall outside ``low``..``high``, the known part of moving space; inside that part but
outside the image's voxels the moving image is zero. NaN in either image means unknown: such voxels, and those that
would be interpolated from one, are skipped too.
"""

import numpy as np
from numba import njit

from ...host.kernels import in_slices

MOMENTS = 6  # n, sum f, sum m, sum f^2, sum m^2, sum f m
PAIRS = 6  # unordered pairs of gradient components
BASIS_PAIRS = 10  # unordered pairs of (u_i, u_j, u_k, 1)
SUMS = MOMENTS + 3 * 12 + PAIRS * BASIS_PAIRS
U = np.uintp  # unsigned indices avoid the check for negative ones


@njit(error_model="numpy")
def _known(x, y, z, low, high):
    """Return True for a position in ``low``..``high``; False for NaN too."""
    return x >= low[0] and x <= high[0] and y >= low[1] and y <= high[1] and z >= low[2] and z <= high[2]


@njit(error_model="numpy")
def _inside(image, x, y, z):
    size_i, size_j, size_k = image.shape
    return x >= 0 and y >= 0 and z >= 0 and x <= size_i - 1 and y <= size_j - 1 and z <= size_k - 1


@njit(error_model="numpy")
def _value_and_gradient(image, x, y, z):
    """Return the trilinear value and its derivative along the axes, per voxel, at a point inside the image."""
    size_i, size_j, size_k = image.shape
    i, j, k = min(int(x), size_i - 2), min(int(y), size_j - 2), min(int(z), size_k - 2)
    fx, fy, fz = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    a0, a1 = image[i, j, k], image[i, j, k + 1]
    b0, b1 = image[i, j + 1, k], image[i, j + 1, k + 1]
    c0, c1 = image[i + 1, j, k], image[i + 1, j, k + 1]
    d0, d1 = image[i + 1, j + 1, k], image[i + 1, j + 1, k + 1]
    az, bz, cz, dz = a1 - a0, b1 - b0, c1 - c0, d1 - d0
    a, b, c, d = a0 + fz * az, b0 + fz * bz, c0 + fz * cz, d0 + fz * dz
    ab, cd = a + fy * (b - a), c + fy * (d - c)
    along_j = (b - a) + fx * ((d - c) - (b - a))
    along_k_low, along_k_high = az + fy * (bz - az), cz + fy * (dz - cz)
    return ab + fx * (cd - ab), cd - ab, along_j, along_k_low + fx * (along_k_high - along_k_low)


@in_slices(over="slices")
def correlation_moments(begin, end, fixed, moving, matrix, low, high, slices):
    """Write n, sum f, sum m, sum f^2, sum m^2, sum f m of each fixed slice i into ``slices`` (I, 6), float64."""
    for i in range(begin, end):
        _slice_moments(i, fixed, moving, matrix, low, high, slices[i])


@njit(error_model="numpy")
def _slice_moments(i, fixed, moving, matrix, low, high, total):
    n, f1, m1, f2, m2, fm = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(fixed.shape[1]):
        for k in range(fixed.shape[2]):
            x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
            y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
            z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
            if not _known(x, y, z, low, high):
                continue
            f, m = fixed[i, j, k], np.float32(0)
            if _inside(moving, x, y, z):
                m, _, _, _ = _value_and_gradient(moving, x, y, z)
            if np.isnan(f) or np.isnan(m):
                continue
            n += 1
            f1 += f
            m1 += m
            f2 += f * f
            m2 += m * m
            fm += f * m
    total[0], total[1], total[2], total[3], total[4], total[5] = n, f1, m1, f2, m2, fm


@in_slices(over="slices")
def normal_equations(begin, end, fixed, moving, matrix, low, high, centre, scale, slices):
    """Write the sums for the Gauss-Newton step of all twelve parameters, per fixed slice i, into ``slices`` (I, SUMS).

    With g the moving gradient (per moving voxel) and u = ((i, j, k) - centre) / scale, the Jacobian of the moving
    value with respect to ``matrix`` is ``g (x) [u, 1]``. Laid out as: six moments; sum J (12), sum J f (12), sum J m
    (12); for each pair of gradient components (00 01 02 11 12 22) the sums of g_a g_b times the ten pairs of
    (u_i, u_j, u_k, 1).

    1. locate and sample a row along k; 2. sums over the row of gradient products times 1, u_k, u_k^2; 3. since u_i,
    u_j do not change along the row, multiply them in once per row.
    """
    for i in range(begin, end):
        _slice_sums(i, fixed, moving, matrix, low, high, centre, scale, slices[i])


@njit(error_model="numpy")
def _slice_sums(i, fixed, moving, matrix, low, high, centre, scale, total):
    _, size_j, size_k = fixed.shape
    corner, part = np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)
    seen, inside = np.empty(size_k, np.float32), np.empty(size_k, np.float32)
    row, value = np.empty((3, size_k), np.float32), np.empty(size_k, np.float32)
    power, line = np.empty(size_k, np.float32), np.empty(size_k, np.float32)
    for k in range(size_k):
        power[k] = (k - centre[2]) / scale[2]
    basis = np.ones(4)
    basis[0] = (i - centre[0]) / scale[0]
    for index in range(SUMS):
        total[index] = 0
    for j in range(size_j):
        basis[1] = (j - centre[1]) / scale[1]
        _locate_row(moving, matrix, i, j, low, high, corner, part, inside, seen)
        some = _sample_row(moving, corner, part, inside, row, value)
        _leave_out(fixed[i, j], row, value, seen, line)
        if some:
            _gradient_sums(line, row, value, seen, power, basis, total)
        _moment_sums(line, value, seen, total)


@njit(error_model="numpy")
def _locate_row(moving, matrix, i, j, low, high, corner, part, inside, seen):
    """Compute the positions of a row of fixed voxels in `moving`, and the flags `seen` and `inside` (0 or 1).

    `corner` (K) is the flat index of the lower corner and `part` (3, K) the fractional offset from it. Points outside
    are moved to the border, NaN to 0.
    """
    x0 = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
    y0 = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
    z0 = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
    along_x, along_y, along_z = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    low_x, low_y, low_z, high_x, high_y, high_z = low[0], low[1], low[2], high[0], high[1], high[2]
    size_i, size_j, size_k = moving.shape
    last_x, last_y, last_z = size_i - 1.0, size_j - 1.0, size_k - 1.0
    for k in range(len(seen)):
        x, y, z = x0 + along_x * k, y0 + along_y * k, z0 + along_z * k
        # No `and`: without branches the loop is vectorised.
        known = (x >= low_x) & (x <= high_x) & (y >= low_y) & (y <= high_y) & (z >= low_z) & (z <= high_z)
        within = (x >= 0) & (y >= 0) & (z >= 0) & (x <= last_x) & (y <= last_y) & (z <= last_z)
        seen[k] = 1.0 if known else 0.0
        inside[k] = 1.0 if (known & within) else 0.0
        a = np.floor(min(max(0.0, x), last_x - 1))
        b = np.floor(min(max(0.0, y), last_y - 1))
        c = np.floor(min(max(0.0, z), last_z - 1))
        part[0, k], part[1, k], part[2, k] = x - a, y - b, z - c
        corner[k] = np.int64((a * size_j + b) * size_k + c)


@njit(error_model="numpy")
def _sample_row(moving, corner, part, inside, row, value):
    """Fill one row's gradients (3, K) and values as `_value_and_gradient` does; return True if any voxel is inside."""
    flat = moving.ravel()
    along_i, along_j = U(moving.shape[1] * moving.shape[2]), U(moving.shape[2])
    found = np.float32(0)
    for k in range(len(value)):
        fx, fy, fz = part[0, k], part[1, k], part[2, k]
        n = U(corner[k])
        q, p = n + along_j, n + along_i
        pq = p + along_j
        a0, a1, b0, b1 = flat[n], flat[n + U(1)], flat[q], flat[q + U(1)]
        c0, c1, d0, d1 = flat[p], flat[p + U(1)], flat[pq], flat[pq + U(1)]
        az, bz, cz, dz = a1 - a0, b1 - b0, c1 - c0, d1 - d0
        a, b, c, d = a0 + fz * az, b0 + fz * bz, c0 + fz * cz, d0 + fz * dz
        ab, cd = a + fy * (b - a), c + fy * (d - c)
        along_k_low, along_k_high = az + fy * (bz - az), cz + fy * (dz - cz)
        there = inside[k] > 0
        value[k] = ab + fx * (cd - ab) if there else np.float32(0)
        row[0, k] = cd - ab if there else np.float32(0)
        row[1, k] = (b - a) + fx * ((d - c) - (b - a)) if there else np.float32(0)
        row[2, k] = along_k_low + fx * (along_k_high - along_k_low) if there else np.float32(0)
        found = max(found, inside[k])
    return found > 0


@njit(error_model="numpy")
def _leave_out(fixed, row, value, seen, line):
    """Copy the fixed row into `line`; where it or the moving value is NaN, set `seen`, values and gradients to 0."""
    for k in range(len(value)):
        known = (fixed[k] == fixed[k]) & (value[k] == value[k])
        seen[k] = seen[k] if known else np.float32(0)
        line[k] = fixed[k] if known else np.float32(0)
        value[k] = value[k] if known else np.float32(0)
        for a in range(3):
            row[a, k] = row[a, k] if known else np.float32(0)


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _moment_sums(fixed, value, seen, total):
    n, f1, m1, f2, m2, fm = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(len(value)):
        f, m = fixed[k] * seen[k], value[k]
        n += seen[k]
        f1 += f
        m1 += m
        f2 += f * f
        m2 += m * m
        fm += f * m
    for index, moment in enumerate((n, f1, m1, f2, m2, fm)):
        total[index] += moment


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _gradient_sums(fixed, row, value, seen, power, basis, total):
    """Add one row's sums: steps 2 and 3 of `normal_equations`."""
    position = MOMENTS + 36
    for a in range(3):
        g = row[a]
        j0, j1, f0, f1, m0, m1 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(len(value)):
            gu = g[k] * power[k]
            j0 += g[k]
            j1 += gu
            f0 += g[k] * fixed[k]
            f1 += gu * fixed[k]
            m0 += g[k] * value[k]
            m1 += gu * value[k]
        for p in range(4):
            total[MOMENTS + 4 * a + p] += j1 if p == 2 else j0 * basis[p]
            total[MOMENTS + 12 + 4 * a + p] += f1 if p == 2 else f0 * basis[p]
            total[MOMENTS + 24 + 4 * a + p] += m1 if p == 2 else m0 * basis[p]
        for b in range(a, 3):
            h = row[b]
            s0, s1, s2 = 0.0, 0.0, 0.0
            for k in range(len(value)):
                gg = g[k] * h[k]
                s0 += gg
                s1 += gg * power[k]
                s2 += gg * power[k] * power[k]
            for p in range(4):
                for q in range(p, 4):
                    if p == 2 and q == 2:
                        total[position] += s2
                    elif p == 2 or q == 2:
                        total[position] += s1 * basis[p] * basis[q]
                    else:
                        total[position] += s0 * basis[p] * basis[q]
                    position += 1


@in_slices(over="result")
def block_means(begin, end, image, factors, result):
    """Compute the mean of each block of ``factors`` voxels; the result's shape times the factors must fit the image."""
    fi, fj, fk = factors
    share = np.float32(1 / (fi * fj * fk))
    for i in range(begin, end):
        for j in range(result.shape[1]):
            line = result[i, j]
            line[:] = 0
            for di in range(fi):
                for dj in range(fj):
                    source = image[i * fi + di, j * fj + dj]
                    for k in range(len(line)):
                        for dk in range(fk):
                            line[k] += source[k * fk + dk]
            for k in range(len(line)):
                line[k] *= share
