"""The compiled sums of `runtime.registration.quality.figures`."""

from ...host.kernels import in_slices

BLOCK = 8  # edge of a block in voxels; sizes of working grids are multiples of it
SUMS = 9  # n; sums of f, m, w; of f^2, m^2, w^2; of f m, f w


@in_slices(over="sums")
def block_sums(begin, end, fixed, moving, warped, counts, sums):
    """Write the sums of three images over blocks of 8^3 voxels into ``sums`` (I/8, J/8, K/8, SUMS), float64.

    fixed, moving (f, m) and warped (w) are (I, J, K) float32; only voxels whose ``counts`` (bool) is True are summed.
    """
    _, blocks_j, blocks_k, _ = sums.shape
    for a in range(begin, end):
        for b in range(blocks_j):
            for c in range(blocks_k):
                n, f1, m1, w1, f2, m2, w2, fm, fw = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                for i in range(a * BLOCK, (a + 1) * BLOCK):
                    for j in range(b * BLOCK, (b + 1) * BLOCK):
                        for k in range(c * BLOCK, (c + 1) * BLOCK):
                            if not counts[i, j, k]:
                                continue
                            f, m, w = fixed[i, j, k], moving[i, j, k], warped[i, j, k]
                            n += 1
                            f1 += f
                            m1 += m
                            w1 += w
                            f2 += f * f
                            m2 += m * m
                            w2 += w * w
                            fm += f * m
                            fw += f * w
                for index, value in enumerate((n, f1, m1, w1, f2, m2, w2, fm, fw)):
                    sums[a, b, c, index] = value
