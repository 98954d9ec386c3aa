// Field operations between engine calls on a CUDA GPU. Reference: runtime/geometry/flow.py,
// runtime/images/similarity.py and runtime/geometry/smoothing.py.
//
// Arrays. Images (I, J, K), feature maps (I, J, K, C) and flows (I, J, K, 3) are contiguous with the channels last:
// voxel (i, j, k) has index v = (i J + j) K + k. Arrays that an engine reads or writes may be planar instead: there,
// channel c of voxel v is at  v voxel_stride + c channel_stride,  in elements. Features are Half or float, everything
// else is float. Flows are in voxels of their own grid.
//
// Work. Every kernel steps through its items with a stride of the total number of threads, so that any number of blocks
// completes the work; neighbouring threads process neighbouring k. The number of threads per block is a power of two,
// at most MOST_THREADS. Offsets are 64 bits wide; the number of rows (I J) fits an int. No kernel uses atomics.
//
// Numerics. NaN and Inf in a flow become NaN in the sampled values, and nothing is read out of bounds. Desktop GPUs
// execute 64 float operations in the time of one double operation, so long sums are pairs of floats (Sum), as accurate
// as double. Each block writes one double, and `finish_sums` adds these in the same order every time.
//
// Compiled by NVRTC without any header, and by g++ with tests/backends/host_gpu/cuda_on_host.h included first.

typedef long long Index;

const int MOST_THREADS = 1024;
const int RUN = 8;                                          // voxels along j that one thread processes in turn
const int WINDOW = 9, RADIUS = WINDOW / 2;                  // window of the local correlation
const int SEGMENT = 5 * WINDOW - 2 * RADIUS;                // voxels over which one thread slides its window
const float LARGEST = 3.402823466e38f;

// ---------------------------------------------------------------------------------------------------------- work items

__device__ inline Index first_item() { return (Index)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline Index all_threads() { return (Index)gridDim.x * blockDim.x; }

// n / size; 64-bit division takes several times as long as 32-bit division and is hardly ever needed.
__device__ inline Index divided(Index n, Index size) {
    return (n | size) >> 32 ? n / size : (Index)((unsigned)n / (unsigned)size);
}

struct Grid { int i, j, k; };
struct Voxel { int i, j, k; };

__device__ inline Index voxels_of(Grid grid) { return (Index)(grid.i * grid.j) * grid.k; }

__device__ inline Voxel voxel_at(Index number, Grid grid) {
    const int row = (int)divided(number, grid.k), i = (int)divided(row, grid.j);
    return {i, row - i * grid.j, (int)(number - (Index)row * grid.k)};
}

// ------------------------------------------------------------------------------------------- features: 16 bytes or one

struct Half { unsigned short bits; };  // IEEE binary16

#if defined(__CUDACC__)
__device__ inline float to_float(Half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
__device__ inline Half to_half(float value) {
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
#else
inline float to_float(Half value) { return half_to_float(value.bits); }
inline Half to_half(float value) { return {float_to_half(value)}; }
#endif

__device__ inline void two_halves(unsigned pair, float* values) {
    values[0] = to_float(Half{(unsigned short)(pair & 0xffff)});
    values[1] = to_float(Half{(unsigned short)(pair >> 16)});
}
__device__ inline unsigned two_halves(const float* values) {
    return to_half(values[0]).bits | (unsigned)to_half(values[1]).bits << 16;
}

__device__ inline void read(const Half* from, float (&values)[1]) { values[0] = to_float(*from); }
__device__ inline void read(const float* from, float (&values)[1]) { values[0] = *from; }
__device__ inline void read(const Half* from, float (&values)[8]) {
    const uint4 word = *(const uint4*)from;
    two_halves(word.x, values), two_halves(word.y, values + 2);
    two_halves(word.z, values + 4), two_halves(word.w, values + 6);
}
__device__ inline void read(const float* from, float (&values)[4]) {
    const float4 word = *(const float4*)from;
    values[0] = word.x, values[1] = word.y, values[2] = word.z, values[3] = word.w;
}

__device__ inline void write(Half* to, const float (&values)[1]) { *to = to_half(values[0]); }
__device__ inline void write(float* to, const float (&values)[1]) { *to = values[0]; }
__device__ inline void write(Half* to, const float (&values)[8]) {
    *(uint4*)to = uint4{two_halves(values), two_halves(values + 2), two_halves(values + 4), two_halves(values + 6)};
}
__device__ inline void write(float* to, const float (&values)[4]) {
    *(float4*)to = float4{values[0], values[1], values[2], values[3]};
}

// Read or write WIDTH channels: in one 16-byte access if they are contiguous and aligned (`wide`), else one by one.
template <class Number, int WIDTH>
__device__ inline void gather(const Number* from, Index stride, int wide, float (&values)[WIDTH]) {
    if (wide) return read(from, values);
#pragma unroll
    for (int c = 0; c < WIDTH; ++c) {
        float value[1];
        read(from + c * stride, value);
        values[c] = value[0];
    }
}
template <class Number, int WIDTH>
__device__ inline void scatter(Number* to, Index stride, int wide, const float (&values)[WIDTH]) {
    if (wide) return write(to, values);
#pragma unroll
    for (int c = 0; c < WIDTH; ++c) {
        const float value[1] = {values[c]};
        write(to + c * stride, value);
    }
}

// Item n of all (voxel, group of channels), ordered so that neighbouring threads access neighbouring memory.
struct Group { Index voxel; int number; };

__device__ inline Group group_at(Index n, Index voxels, int groups, bool planar) {
    const Index high = divided(n, planar ? voxels : groups), low = n - high * (planar ? voxels : groups);
    return planar ? Group{low, (int)high} : Group{high, (int)low};
}

// -------------------------------------------------------------------------------------------- trilinear, zeros outside

// The two neighbours of a coordinate along an axis, the first one at index `at`, and their weights: 1 minus the
// distance, at least 0. At and beyond the border they are the outermost two voxels. A coordinate of NaN or Inf makes a
// weight NaN.
struct Axis { int at; float weight[2]; };

__device__ inline Axis about(float x, int size) {
    const float first = floorf(fminf(fmaxf(x, 0.0f), (float)max(size - 2, 0)));
    const float distance = x - first, second = size > 1 ? 1.0f : 0.0f;
    return {(int)first, {__saturatef(1.0f - fabsf(distance)), __saturatef(second - fabsf(distance - 1.0f)) + 0.0f * x}};
}

// Call add(weight, voxel index) for each of the 8 corners of the cell around a position.
template <class Add>
__device__ inline void corners(Grid grid, float x, float y, float z, Add add) {
    const Axis a = about(x, grid.i), b = about(y, grid.j), c = about(z, grid.k);
    const Index first = (Index)(unsigned)(a.at * grid.j + b.at) * (unsigned)grid.k + c.at;
    const Index step_i = grid.i > 1 ? (Index)grid.j * grid.k : 0;
    const int step_j = grid.j > 1 ? grid.k : 0, step_k = grid.k > 1 ? 1 : 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        const int far_i = n >> 2, far_j = n >> 1 & 1, far_k = n & 1;
        const Index voxel = first + far_i * step_i + far_j * step_j + far_k * step_k;
        add(a.weight[far_i] * b.weight[far_j] * c.weight[far_k], voxel);
    }
}

__device__ inline float sampled(const float* __restrict__ image, Grid grid, float x, float y, float z) {
    float value = 0.0f;
    corners(grid, x, y, z, [&](float weight, Index voxel) { value += weight * image[voxel]; });
    return value;
}

// ----------------------------------------------------------------------------------------------- features into engines

// out(x, c) = features(x + flow(x), c)
// features (I, J, K, C), flow (I, J, K, 3), out of the features' shape in any layout: half of an estimator's input.
//
// 1. each thread takes a voxel and WIDTH of its channels, which are one load from `features`
// 2. reads the voxel's displacement
// 3. adds up the weighted corners of the target cell, in float
// 4. writes the channels: one store if `wide`, else one by one
template <class Number, int WIDTH>
__device__ inline void warp_features(const Number* __restrict__ features, const float* __restrict__ flow,
                                     Number* __restrict__ out, Grid grid, int channels, Index voxel_stride,
                                     Index channel_stride, int wide) {
    const Index voxels = voxels_of(grid);
    const int groups = channels / WIDTH;
    for (Index n = first_item(); n < voxels * groups; n += all_threads()) {
        const Group group = group_at(n, voxels, groups, channel_stride != 1);
        const Voxel x = voxel_at(group.voxel, grid);
        const float* u = flow + 3 * group.voxel;
        const Number* first = features + group.number * WIDTH;
        float sums[WIDTH] = {};
        corners(grid, x.i + u[0], x.j + u[1], x.k + u[2], [&](float weight, Index voxel) {
            float values[WIDTH];
            read(first + voxel * channels, values);
#pragma unroll
            for (int c = 0; c < WIDTH; ++c) sums[c] += weight * values[c];
        });
        const Index place = group.voxel * voxel_stride + group.number * WIDTH * channel_stride;
        scatter(out + place, channel_stride, wide, sums);
    }
}

extern "C" __global__ void warp_features_half8(
        const Half* __restrict__ features, const float* __restrict__ flow, Half* __restrict__ out, int I, int J,
        int K, int C, long long voxel_stride, long long channel_stride, int wide) {
    warp_features<Half, 8>(features, flow, out, {I, J, K}, C, voxel_stride, channel_stride, wide);
}
extern "C" __global__ void warp_features_half(
        const Half* __restrict__ features, const float* __restrict__ flow, Half* __restrict__ out, int I, int J,
        int K, int C, long long voxel_stride, long long channel_stride, int wide) {
    warp_features<Half, 1>(features, flow, out, {I, J, K}, C, voxel_stride, channel_stride, wide);
}
extern "C" __global__ void warp_features_float4(
        const float* __restrict__ features, const float* __restrict__ flow, float* __restrict__ out, int I, int J,
        int K, int C, long long voxel_stride, long long channel_stride, int wide) {
    warp_features<float, 4>(features, flow, out, {I, J, K}, C, voxel_stride, channel_stride, wide);
}
extern "C" __global__ void warp_features_float(
        const float* __restrict__ features, const float* __restrict__ flow, float* __restrict__ out, int I, int J,
        int K, int C, long long voxel_stride, long long channel_stride, int wide) {
    warp_features<float, 1>(features, flow, out, {I, J, K}, C, voxel_stride, channel_stride, wide);
}

// target(x, c) = source(x, c)
// source and target of `voxels` voxels and C channels, each with its own layout. Used to fill the fixed half of an
// estimator's input and to convert an engine's planar memory to channels-last.
//
// 1. each thread takes a voxel and WIDTH of its channels; neighbouring threads take neighbouring voxels if either side
//    is planar
// 2. reads them, in one load if `wide_source`
// 3. writes them, in one store if `wide_target`
template <class Number, int WIDTH>
__device__ inline void carry(const Number* __restrict__ source, Index source_voxel, Index source_channel,
                             int wide_source, Number* __restrict__ target, Index target_voxel, Index target_channel,
                             int wide_target, Index voxels, int channels) {
    const int groups = channels / WIDTH;
    const bool planar = source_channel != 1 || target_channel != 1;
    for (Index n = first_item(); n < voxels * groups; n += all_threads()) {
        const Group group = group_at(n, voxels, groups, planar);
        const Index from = group.voxel * source_voxel + group.number * WIDTH * source_channel;
        const Index to = group.voxel * target_voxel + group.number * WIDTH * target_channel;
        float values[WIDTH];
        gather(source + from, source_channel, wide_source, values);
        scatter(target + to, target_channel, wide_target, values);
    }
}

extern "C" __global__ void carry_half8(
        const Half* __restrict__ source, long long source_voxel, long long source_channel, int wide_source,
        Half* __restrict__ target, long long target_voxel, long long target_channel, int wide_target,
        long long voxels, int C) {
    carry<Half, 8>(source, source_voxel, source_channel, wide_source, target, target_voxel, target_channel,
                   wide_target, voxels, C);
}
extern "C" __global__ void carry_half(
        const Half* __restrict__ source, long long source_voxel, long long source_channel, int wide_source,
        Half* __restrict__ target, long long target_voxel, long long target_channel, int wide_target,
        long long voxels, int C) {
    carry<Half, 1>(source, source_voxel, source_channel, wide_source, target, target_voxel, target_channel,
                   wide_target, voxels, C);
}
extern "C" __global__ void carry_float4(
        const float* __restrict__ source, long long source_voxel, long long source_channel, int wide_source,
        float* __restrict__ target, long long target_voxel, long long target_channel, int wide_target,
        long long voxels, int C) {
    carry<float, 4>(source, source_voxel, source_channel, wide_source, target, target_voxel, target_channel,
                    wide_target, voxels, C);
}
extern "C" __global__ void carry_float(
        const float* __restrict__ source, long long source_voxel, long long source_channel, int wide_source,
        float* __restrict__ target, long long target_voxel, long long target_channel, int wide_target,
        long long voxels, int C) {
    carry<float, 1>(source, source_voxel, source_channel, wide_source, target, target_voxel, target_channel,
                    wide_target, voxels, C);
}

// --------------------------------------------------------------------------------------------------------------- flows

// out(x) = flow(x + residual(x)) + residual(x)
// flow, out (I, J, K, 3); residual of their shape in any layout.
//
// 1. each thread takes a voxel and reads its residual
// 2. adds up the weighted corners of the flow's cell at the target, all three components
// 3. adds the residual and writes the result
extern "C" __global__ void compose(
        const float* __restrict__ flow, const float* __restrict__ residual, long long voxel_stride,
        long long channel_stride, float* __restrict__ out, int I, int J, int K) {
    const Grid grid = {I, J, K};
    for (Index v = first_item(); v < voxels_of(grid); v += all_threads()) {
        const Voxel x = voxel_at(v, grid);
        const float* u = residual + v * voxel_stride;
        const float du = u[0], dv = u[channel_stride], dw = u[2 * channel_stride];
        float sums[3] = {du, dv, dw};
        corners(grid, x.i + du, x.j + dv, x.k + dw, [&](float weight, Index voxel) {
#pragma unroll
            for (int c = 0; c < 3; ++c) sums[c] += weight * flow[3 * voxel + c];
        });
#pragma unroll
        for (int c = 0; c < 3; ++c) out[3 * v + c] = sums[c];
    }
}

// The position of voxel `index` of an axis of `fine` voxels on an axis of `coarse` voxels (align corners):
// index (coarse - 1) / (fine - 1), as a voxel and a rest in units of 1 / (fine - 1). Exact integer arithmetic;
// fine < 2^16.
struct Share { int voxel, rest; };

__device__ inline Share share_of(int index, int coarse, int fine) {
    const unsigned steps = max(fine - 1, 1), place = (unsigned)index * (coarse - 1), voxel = place / steps;
    return {(int)voxel, (int)(place - voxel * steps)};
}

__device__ inline float unit_of(int fine) { return 1.0f / (float)max(fine - 1, 1); }

__device__ inline float between(float fraction, float low, float high) { return low + fraction * (high - low); }

// The displacements of a run of voxels along j, one after the other, for a flow coarser than the grid: interpolated
// between two coarse rows, each of which is interpolated along i and k. A row is read when the run reaches it.
struct Column {
    const float *near_i, *far_i;      // the latest row read, in the coarse planes on either side of the column
    int low_k, high_k, step_j;        // offsets of the two voxels within a row; stride from row to row
    float along_i, along_k, unit_j;   // fractions along i and k; length of one unit of `rest`
    int row, rows, rest, steps;       // index of row `below`; number of rows; position between rows; units per row
    float below[3], above[3];         // the displacements in the two coarse rows around the current voxel

    __device__ inline Column(const float* flow, Grid coarse, Grid fine, int i, int j, int k) {
        const Share at_i = share_of(i, coarse.i, fine.i), at_j = share_of(j, coarse.j, fine.j);
        const Share at_k = share_of(k, coarse.k, fine.k);
        along_i = at_i.rest * unit_of(fine.i), along_k = at_k.rest * unit_of(fine.k), unit_j = unit_of(fine.j);
        row = at_j.voxel, rest = at_j.rest, rows = coarse.j, steps = max(fine.j - 1, 1);
        step_j = 3 * coarse.k, low_k = 3 * at_k.voxel, high_k = 3 * min(at_k.voxel + 1, coarse.k - 1);
        near_i = flow + (Index)(at_i.voxel * rows + row) * step_j;
        far_i = flow + (Index)(min(at_i.voxel + 1, coarse.i - 1) * rows + row) * step_j;
        read_row(below);
        read_above();
    }

    __device__ inline void read_row(float (&values)[3]) const {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const float near = between(along_k, near_i[low_k + c], near_i[high_k + c]);
            values[c] = between(along_i, near, between(along_k, far_i[low_k + c], far_i[high_k + c]));
        }
    }

    // Read the row above; beyond the last row, read that one again.
    __device__ inline void read_above() {
        if (row + 1 < rows) near_i += step_j, far_i += step_j;
        read_row(above);
    }

    __device__ inline float displacement(int c) const { return between(rest * unit_j, below[c], above[c]); }

    __device__ inline void advance() {
        rest += rows - 1;
        if (rest < steps) return;
        rest -= steps, row += 1;
#pragma unroll
        for (int c = 0; c < 3; ++c) below[c] = above[c];
        read_above();
    }
};

// Call use(voxel, voxel index, displacement) for every voxel of a grid, for a flow on that grid or (COARSE) on one that
// is coarser by a whole factor. Each thread takes RUN voxels along j.
template <bool COARSE, class Use>
__device__ inline void displaced(const float* __restrict__ flow, Grid coarse, Grid grid, Use use) {
    const float scale = (float)(grid.k / coarse.k);
    const Grid runs = {grid.i, (grid.j + RUN - 1) / RUN, grid.k};
    for (Index n = first_item(); n < voxels_of(runs); n += all_threads()) {
        Voxel x = voxel_at(n, runs);
        x.j *= RUN;
        Index v = (Index)(x.i * grid.j + x.j) * grid.k + x.k;
        const int end = min(x.j + RUN, grid.j);
        if (COARSE) {
            Column at(flow, coarse, grid, x.i, x.j, x.k);
#pragma unroll 1
            for (; x.j < end; ++x.j, v += grid.k, at.advance())
                use(x, v, scale * at.displacement(0), scale * at.displacement(1), scale * at.displacement(2));
        } else {
            for (; x.j < end; ++x.j, v += grid.k) use(x, v, flow[3 * v], flow[3 * v + 1], flow[3 * v + 2]);
        }
    }
}

// out(x) = s flow(x / s): the same displacement on a grid s times finer
// flow (i, j, k, 3), out (I, J, K, 3) = (s i, s j, s k, 3).
//
// 1. each thread takes RUN voxels along j
// 2. interpolates the flow (Column)
// 3. writes it
extern "C" __global__ void upsample(
        const float* __restrict__ flow, int i, int j, int k, float* __restrict__ out, int I, int J, int K) {
    displaced<true>(flow, {i, j, k}, {I, J, K}, [&](Voxel, Index number, float u, float v, float w) {
        out[3 * number] = u, out[3 * number + 1] = v, out[3 * number + 2] = w;
    });
}

// out(x) = image(x + s flow(x / s))
// image, out (I, J, K); flow (i, j, k, 3) on that grid (s = 1) or on one coarser by a whole factor s.
//
// 1. each thread takes RUN voxels along j
// 2. reads the flow, or interpolates it (Column)
// 3. samples the image and writes
extern "C" __global__ void warp_image(
        const float* __restrict__ image, const float* __restrict__ flow, float* __restrict__ out, int I, int J, int K) {
    const Grid grid = {I, J, K};
    displaced<false>(flow, grid, grid, [&](Voxel x, Index number, float u, float v, float w) {
        out[number] = sampled(image, grid, x.i + u, x.j + v, x.k + w);
    });
}
extern "C" __global__ void warp_image_coarse(
        const float* __restrict__ image, const float* __restrict__ flow, int i, int j, int k, float* __restrict__ out,
        int I, int J, int K) {
    const Grid grid = {I, J, K};
    displaced<true>(flow, {i, j, k}, grid, [&](Voxel x, Index number, float u, float v, float w) {
        out[number] = sampled(image, grid, x.i + u, x.j + v, x.k + w);
    });
}

// ------------------------------------------------------------------------------------------------- smoothing residuals
//
// c r + (1 - c) S(c r) / (S(c) + least), as in the reference runtime/geometry/smoothing.py: r is a residual flow, c the
// fixed image's confidence on its grid, and S a Gaussian filter, applied by `gaussian` along one axis at a time.

// out = means of blocks of 2x2x2 voxels
// image (2 I, 2 J, 2 K), out (I, J, K).
extern "C" __global__ void halve(const float* __restrict__ image, float* __restrict__ out, int I, int J, int K) {
    const Grid grid = {I, J, K};
    const Index step_j = 2 * K, step_i = 2 * J * step_j;
    for (Index v = first_item(); v < voxels_of(grid); v += all_threads()) {
        const Voxel x = voxel_at(v, grid);
        const float* at = image + 2 * x.i * step_i + 2 * x.j * step_j + 2 * x.k;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n) sum += at[(n >> 2) * step_i + (n >> 1 & 1) * step_j + (n & 1)];
        out[v] = 0.125f * sum;
    }
}

// out = g / (g + edge), g the squared gradient, from difference quotients between a voxel's neighbours (the voxel
// itself at the border) as in `numpy.gradient`
// image, out (I, J, K).
extern "C" __global__ void confidences(
        const float* __restrict__ image, float* __restrict__ out, int I, int J, int K, float edge) {
    const Grid grid = {I, J, K};
    for (Index v = first_item(); v < voxels_of(grid); v += all_threads()) {
        const Voxel x = voxel_at(v, grid);
        const Index step[3] = {(Index)J * K, K, 1};
        const int before[3] = {x.i > 0, x.j > 0, x.k > 0}, after[3] = {x.i < I - 1, x.j < J - 1, x.k < K - 1};
        float squared = 0.0f;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const float difference = image[v + after[axis] * step[axis]] - image[v - before[axis] * step[axis]];
            const float slope = before[axis] + after[axis] == 2 ? 0.5f * difference : difference;
            squared += slope * slope;
        }
        out[v] = squared / (squared + edge);
    }
}

// out = c r
// residual r (I, J, K, 3) in any layout, trusted c (I, J, K), out (I, J, K, 3).
extern "C" __global__ void trusted_part(
        const float* __restrict__ residual, long long voxel_stride, long long channel_stride,
        const float* __restrict__ trusted, float* __restrict__ out, long long voxels) {
    for (Index v = first_item(); v < voxels; v += all_threads()) {
#pragma unroll
        for (int c = 0; c < 3; ++c) out[3 * v + c] = trusted[v] * residual[v * voxel_stride + c * channel_stride];
    }
}

// out(x) = sum over t of weights(t) source(x + t) along one axis, with the outermost voxels repeated beyond its ends
// source, out: `count` elements; the axis has `size` voxels at a stride of `inner` elements; weights (2 radius + 1,).
extern "C" __global__ void gaussian(
        const float* __restrict__ source, const float* __restrict__ weights, int radius, float* __restrict__ out,
        int size, long long inner, long long count) {
    for (Index n = first_item(); n < count; n += all_threads()) {
        const Index line = divided(n, inner);
        const int x = (int)(line - divided(line, size) * size);
        float sum = 0.0f;
        for (int t = -radius; t <= radius; ++t)
            sum += weights[radius + t] * source[n + (Index)(min(max(x + t, 0), size - 1) - x) * inner];
        out[n] = sum;
    }
}

// out = c r + (1 - c) near / (around + least)
// residual r (I, J, K, 3) in any layout; trusted c and around S(c) (I, J, K); near S(c r) and out (I, J, K, 3).
extern "C" __global__ void fill_in(
        const float* __restrict__ residual, long long voxel_stride, long long channel_stride,
        const float* __restrict__ trusted, const float* __restrict__ around, const float* __restrict__ near,
        float* __restrict__ out, long long voxels, float least) {
    for (Index v = first_item(); v < voxels; v += all_threads()) {
        const float c = trusted[v], share = (1.0f - c) / (around[v] + least);
#pragma unroll
        for (int n = 0; n < 3; ++n)
            out[3 * v + n] = c * residual[v * voxel_stride + n * channel_stride] + share * near[3 * v + n];
    }
}

// ---------------------------------------------------------------------------------------------------------------- sums

// A number as the sum of two floats, accurate to about 47 bits.
struct Sum { float high, low; };

__device__ inline Sum plus(Sum a, Sum b) {
    const float high = a.high + b.high, part = high - a.high;
    const float lost = (a.high - (high - part)) + (b.high - part) + (a.low + b.low);  // rounding error of `high`
    const float sum = high + lost;
    return {sum, lost - (sum - high)};
}

__device__ inline Sum product(float a, float b) {
    const float high = __fmul_rn(a, b);  // never fused with another operation
    return {high, fmaf(a, b, -high)};
}

// Combine the values of all threads of the block in a fixed order, by halving; thread 0 gets the result.
template <class Value, class Combine>
__device__ inline Value over_block(Value value, Combine combine) {
    __shared__ Value memory[MOST_THREADS];
    memory[threadIdx.x] = value;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) memory[threadIdx.x] = combine(memory[threadIdx.x], memory[threadIdx.x + half]);
    }
    __syncthreads();  // the next call reuses the memory
    return memory[0];
}

struct Added {
    template <class Number>
    __device__ inline Number operator()(Number a, Number b) const { return a + b; }
};

// Write a block's sum as entry (number, block) of the partial sums, (sums, blocks) double.
__device__ inline void write_partial(Sum value, int number, double* partial) {
    const Sum sum = over_block(value, plus);
    if (threadIdx.x == 0) partial[(Index)number * gridDim.x + blockIdx.x] = (double)sum.high + (double)sum.low;
}

// Sums of m, m^2 and m f over the image, m = moving(x + s flow(x / s)), from which the host computes NCC and MSE
// fixed, moving (I, J, K); flow (i, j, k, 3) on that grid (s = 1) or on one coarser by a whole factor s; partial
// (3, blocks).
//
// 1. each thread takes RUN voxels along j, run after run
// 2. reads the flow, or interpolates it (Column); nothing at image size is written
// 3. samples the moving image, reads the fixed one, adds to three sums
// 4. the block adds its threads' sums and writes three doubles; `finish_sums` adds those of all blocks
template <bool COARSE>
__device__ inline void add_similarity(const float* __restrict__ fixed, const float* __restrict__ moving,
                                      const float* __restrict__ flow, Grid coarse, Grid grid, double* partial) {
    Sum m = {}, mm = {}, mf = {};
    displaced<COARSE>(flow, coarse, grid, [&](Voxel x, Index number, float u, float v, float w) {
        const float f = fixed[number], value = sampled(moving, grid, x.i + u, x.j + v, x.k + w);
        m = plus(m, {value, 0.0f}), mm = plus(mm, product(value, value)), mf = plus(mf, product(value, f));
    });
    write_partial(m, 0, partial), write_partial(mm, 1, partial), write_partial(mf, 2, partial);
}

extern "C" __global__ void score_sums(
        const float* __restrict__ fixed, const float* __restrict__ moving, const float* __restrict__ flow,
        double* __restrict__ partial, int I, int J, int K) {
    add_similarity<false>(fixed, moving, flow, {I, J, K}, {I, J, K}, partial);
}
extern "C" __global__ void score_sums_coarse(
        const float* __restrict__ fixed, const float* __restrict__ moving, const float* __restrict__ flow, int i, int j,
        int k, double* __restrict__ partial, int I, int J, int K) {
    add_similarity<true>(fixed, moving, flow, {i, j, k}, {I, J, K}, partial);
}

// out = 0 where hole > 0, else image
// image, hole, out: `count` elements.
extern "C" __global__ void without(
        const float* __restrict__ image, const float* __restrict__ hole, float* __restrict__ out, long long count) {
    for (Index n = first_item(); n < count; n += all_threads()) out[n] = hole[n] > 0.0f ? 0.0f : image[n];
}

// Sums of f and f^2
// image: `count` elements; partial (2, blocks).
//
// 1. each thread adds up elements at a stride of the number of threads
// 2. the block adds its threads' sums
extern "C" __global__ void image_sums(const float* __restrict__ image, long long count, double* __restrict__ partial) {
    Sum f = {}, ff = {};
    for (Index n = first_item(); n < count; n += all_threads()) {
        const float value = image[n];
        f = plus(f, {value, 0.0f}), ff = plus(ff, product(value, value));
    }
    write_partial(f, 0, partial), write_partial(ff, 1, partial);
}

// out = the sums of each row of `partial`, then `known`
// partial (sums, parts), known (knowns,), out (sums + knowns,) on the GPU or in memory mapped to the host. One block.
//
// 1. each thread adds parts of a row at a stride of the number of threads, in order
// 2. the block adds its threads' sums
// 3. known numbers are appended, so that everything a score needs is transferred at once
extern "C" __global__ void finish_sums(
        const double* __restrict__ partial, int parts, int sums, const double* __restrict__ known, int knowns,
        double* __restrict__ out) {
    if (blockIdx.x > 0) return;
    for (int number = 0; number < sums; ++number) {
        double sum = 0.0;
        for (int part = threadIdx.x; part < parts; part += blockDim.x) sum += partial[(Index)number * parts + part];
        sum = over_block(sum, Added());
        if (threadIdx.x == 0) out[number] = sum;
    }
    for (int n = threadIdx.x; n < knowns; n += blockDim.x) out[sums + n] = known[n];
}

// -------------------------------------------------------------------------------------------------- extremes and folds

// The larger of two numbers, NaN if either is.
struct Larger {
    template <class Number>
    __device__ inline Number operator()(Number a, Number b) const { return a > b || a != a ? a : b; }
};

// Maxima of -f and of f, NaN if any element is NaN or Inf
// image: `count` elements; partial (2, blocks).
//
// 1. each thread scans elements at a stride of the number of threads; f - f is NaN if f is not finite
// 2. the block reduces its threads' two maxima; `finish_extremes` reduces those of all blocks
extern "C" __global__ void extremes(const float* __restrict__ image, long long count, double* __restrict__ partial) {
    const Larger larger;
    float below = -LARGEST, above = -LARGEST;
    for (Index n = first_item(); n < count; n += all_threads()) {
        const float value = image[n] + (image[n] - image[n]);
        below = larger(below, -value), above = larger(above, value);
    }
    below = over_block(below, larger), above = over_block(above, larger);
    if (threadIdx.x == 0) partial[blockIdx.x] = below, partial[gridDim.x + blockIdx.x] = above;
}

// out = the maximum of each row of `partial` (2, parts). One block.
extern "C" __global__ void finish_extremes(const double* __restrict__ partial, int parts, double* __restrict__ out) {
    if (blockIdx.x > 0) return;
    const Larger larger;
    for (int number = 0; number < 2; ++number) {
        double found = -LARGEST;
        for (int part = threadIdx.x; part < parts; part += blockDim.x)
            found = larger(found, partial[(Index)number * parts + part]);
        found = over_block(found, larger);
        if (threadIdx.x == 0) out[number] = found;
    }
}

// Determinant of the Jacobian of x + flow(x). Its columns, one per axis, are difference quotients between a voxel's
// neighbours (the voxel itself at the border) as in `numpy.gradient`. `reach`: product of the columns' 1-norms, which
// bounds the rounding error up to a constant.
template <class Number>
__device__ inline Number determinant(const float* __restrict__ flow, const Index (&low)[3], const Index (&high)[3],
                                     const int (&distance)[3], Number* reach) {
    Number jacobian[3][3];
    *reach = 1;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        Number size = 0;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const Number difference = (Number)flow[3 * high[axis] + c] - (Number)flow[3 * low[axis] + c];
            const Number slope = distance[axis] == 2 ? difference / 2 : difference;
            jacobian[c][axis] = slope + (c == axis ? 1 : 0);
            size += jacobian[c][axis] < 0 ? -jacobian[c][axis] : jacobian[c][axis];
        }
        *reach *= size;
    }
    const Number(*m)[3] = jacobian;
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
         + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

// Number of voxels with a Jacobian determinant of x + flow(x) <= 0
// flow (I, J, K, 3); partial (1, blocks).
//
// 1. each thread takes a voxel and finds its neighbours along the three axes
// 2. computes the determinant in float, or in double if it is too close to 0 to be sure of its sign
// 3. the block adds its threads' counts; `finish_sums` adds those of all blocks
extern "C" __global__ void folded(const float* __restrict__ flow, double* __restrict__ partial, int I, int J, int K) {
    const Grid grid = {I, J, K};
    int count = 0;
    for (Index v = first_item(); v < voxels_of(grid); v += all_threads()) {
        const Voxel x = voxel_at(v, grid);
        const Index step[3] = {(Index)J * K, K, 1};
        const int before[3] = {x.i > 0, x.j > 0, x.k > 0}, after[3] = {x.i < I - 1, x.j < J - 1, x.k < K - 1};
        Index low[3], high[3];
        int distance[3];
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            low[axis] = v - before[axis] * step[axis], high[axis] = v + after[axis] * step[axis];
            distance[axis] = before[axis] + after[axis];
        }
        float reach;
        const float rough = determinant<float>(flow, low, high, distance, &reach);
        if (fabsf(rough) > 1e-5f * reach) {
            count += rough < 0.0f;
        } else {
            double unused;
            count += determinant<double>(flow, low, high, distance, &unused) <= 0.0;
        }
    }
    count = over_block(count, Added());
    if (threadIdx.x == 0) partial[blockIdx.x] = count;
}

// --------------------------------------------------------------------------------------------------- local correlation

// Moments of the samples in a part of a window: the means of f and w, and the sums of (f - mean)^2, (w - mean)^2 and
// (f - mean)(w - mean). Sums of squares about the mean do not suffer from cancellation, so float is accurate enough.
struct Moments { float f, w, ff, ww, fw; };

// Merge the moments of WINDOW parts of `samples` samples each.
__device__ inline Moments together(const Moments (&parts)[WINDOW], float samples) {
    Moments all = {}, about_mean = {};
#pragma unroll
    for (int n = 0; n < WINDOW; ++n) {
        all.f += parts[n].f, all.w += parts[n].w;
        all.ff += parts[n].ff, all.ww += parts[n].ww, all.fw += parts[n].fw;
    }
    all.f *= 1.0f / WINDOW, all.w *= 1.0f / WINDOW;
#pragma unroll
    for (int n = 0; n < WINDOW; ++n) {
        const float f = parts[n].f - all.f, w = parts[n].w - all.w;
        about_mean.ff += f * f, about_mean.ww += w * w, about_mean.fw += f * w;
    }
    all.ff += samples * about_mean.ff, all.ww += samples * about_mean.ww, all.fw += samples * about_mean.fw;
    return all;
}

// Slide a window along an axis of `size` voxels, from `first` to `last` (exclusive). enter(index) returns the moments
// of the part that enters the window (zeros outside the image); use(index, moments) receives those of the window around
// every index.
template <class Enter, class Use>
__device__ inline void slide(int first, int last, int size, float samples, Enter enter, Use use) {
    Moments parts[WINDOW] = {};
    for (int start = first - RADIUS; start < last + RADIUS; start += WINDOW) {
#pragma unroll
        for (int n = 0; n < WINDOW; ++n) {
            const int place = start + n, centre = place - RADIUS;
            // `parts` is a ring: the part that enters the window replaces the one that leaves it.
            parts[n] = place >= 0 && place < min(size, last + RADIUS) ? enter(place) : Moments{};
            if (centre >= first && centre < last) use(centre, together(parts, samples));
        }
    }
}

// Moments of the fixed and the warped image over windows of WINDOW^2 voxels in the plane of j and k
// fixed, warped (I, J, K); planes (5, I, J, K).
//
// 1. each thread takes SEGMENT voxels along j
// 2. computes the moments of the WINDOW voxels along k around each
// 3. merges those of WINDOW such lines along j, kept in registers
// 4. writes five numbers per voxel
extern "C" __global__ void lncc_planes(
        const float* __restrict__ fixed, const float* __restrict__ warped, float* __restrict__ planes, int I, int J,
        int K) {
    const Grid segments = {I, (J + SEGMENT - 1) / SEGMENT, K};
    const Index voxels = voxels_of({I, J, K});
    for (Index n = first_item(); n < voxels_of(segments); n += all_threads()) {
        const Voxel x = voxel_at(n, segments);
        const int first = x.j * SEGMENT;
        const auto line = [&](int j) {
            const Index row = (Index)(x.i * J + j) * K;
            Moments samples[WINDOW] = {};
#pragma unroll
            for (int d = 0; d < WINDOW; ++d) {
                const int k = x.k + d - RADIUS;
                if (k >= 0 && k < K) samples[d].f = fixed[row + k], samples[d].w = warped[row + k];
            }
            return together(samples, 1.0f);
        };
        slide(first, min(first + SEGMENT, J), J, WINDOW, line, [&](int j, Moments found) {
            float* out = planes + (Index)(x.i * J + j) * K + x.k;
            out[0] = found.f, out[voxels] = found.w;
            out[2 * voxels] = found.ff, out[3 * voxels] = found.ww, out[4 * voxels] = found.fw;
        });
    }
}

// Sum over voxels of  cross^2 / (var_fixed var_warped + epsilon)  in windows of WINDOW^3 voxels
// planes (5, I, J, K) from `lncc_planes`; partial (1, blocks).
//
// 1. each thread takes SEGMENT voxels along i
// 2. merges the moments of WINDOW planes along i, kept in registers
// 3. computes the local correlation and adds it up
// 4. the block adds its threads' sums; `finish_sums` adds those of all blocks
extern "C" __global__ void lncc_sums(
        const float* __restrict__ planes, float epsilon, double* __restrict__ partial, int I, int J, int K) {
    const Grid segments = {(I + SEGMENT - 1) / SEGMENT, J, K};
    const Index voxels = voxels_of({I, J, K});
    Sum sum = {};
    for (Index n = first_item(); n < voxels_of(segments); n += all_threads()) {
        const Voxel x = voxel_at(n, segments);
        const int first = x.i * SEGMENT;
        const auto plane = [&](int i) {
            const float* at = planes + (Index)(i * J + x.j) * K + x.k;
            return Moments{at[0], at[voxels], at[2 * voxels], at[3 * voxels], at[4 * voxels]};
        };
        slide(first, min(first + SEGMENT, I), I, WINDOW * WINDOW, plane, [&](int, Moments found) {
            sum = plus(sum, {found.fw * found.fw / (found.ff * found.ww + epsilon), 0.0f});
        });
    }
    write_partial(sum, 0, partial);
}
