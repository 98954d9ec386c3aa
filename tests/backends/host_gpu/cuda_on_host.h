// What of CUDA C++ kernels.cu uses, for g++ -std=c++17: the kernels run on the CPU, as they are.
//
// run_on_host(kernel, blocks, threads, arguments, barriers) takes arguments as cuLaunchKernel does. Without barriers a
// block is a loop over its threads. With them every thread of a block is a fiber with a stack of its own, which runs up
// to the next __syncthreads() and lets the next one run, forwards and backwards in turn: what needs a barrier and has
// none shows. A thread that ends while others wait, or a barrier where none was announced, ends the program. Blocks run
// side by side where there is OpenMP.

#pragma once

#undef _FORTIFY_SOURCE  // its longjmp takes a jump to another stack for an error

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static thread_local

using std::max;
using std::min;

struct Index3 { unsigned x, y, z; };
static thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) [[gnu::may_alias]] uint4 { unsigned x, y, z, w; };
struct alignas(16) [[gnu::may_alias]] float4 { float x, y, z, w; };

inline float __fmul_rn(float a, float b) { return a * b; }  // ISO C++ (-std=c++17) contracts nothing

inline float __saturatef(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }  // 0 for NaN, as on a GPU

// ------------------------------------------------------------------------------------------ IEEE binary16, in software

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned short half) {
    const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    const float sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
    return sign * std::ldexp(float(1024 + fraction), int(exponent) - 25);
}

// Rounded to nearest, halfway cases to even.
inline unsigned short float_to_half(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;                             // NaN, as a GPU writes it
    if (size >= 0x477ff000) return sign | 0x7c00;                     // from 65520 on: Inf
    if (size < 0x38800000)                                            // below 2^-14: whole numbers of 2^-24
        return sign | (unsigned short)std::nearbyint(std::ldexp(std::fabs(value), 24));
    const uint32_t odd = size >> 13 & 1;
    return sign | ((size + 0xfff + odd - 0x38000000) >> 13);          // a carry goes into the exponent, as it should
}

// ---------------------------------------------------------------------------------------------------- barriers: fibers

class Fibers {
public:
    static constexpr size_t STACK = 64 << 10;

    // Runs work() once for every thread of a block, with barriers.
    template <class Work>
    void run(unsigned threads, Work& work) {
        if (threads > count_) {
            stacks_.reset(new char[threads * STACK]);  // pages are taken when touched
            states_.reset(new State[threads]);
            count_ = threads;
        }
        work_ = &work, call_ = [](void* work) { (*static_cast<Work*>(work))(); };
        for (unsigned n = 0; n < threads; ++n) start(n);
        bool waiting = true;
        for (unsigned turn = 0; waiting; ++turn) {
            unsigned count = 0;
            for (unsigned n = 0; n < threads; ++n) count += resume(turn % 2 ? threads - 1 - n : n);
            waiting = count == threads;
            if (count != 0 && !waiting) fail("a thread ended while others wait at a barrier");
        }
    }

    void barrier() {
        if (!inside_) fail("a barrier in a kernel announced to have none");
        if (!_setjmp(states_[current_].jump)) _longjmp(scheduler_, 1);
    }

    static Fibers& here() {
        static thread_local Fibers fibers;
        return fibers;
    }

private:
    struct State {
        ucontext_t context;
        jmp_buf jump;
        bool started;
    };

    [[noreturn]] static void fail(const char* why) {
        std::fprintf(stderr, "cuda_on_host: %s\n", why);
        std::abort();
    }

    void start(unsigned n) {
        State& state = states_[n];
        getcontext(&state.context);
        state.context.uc_stack.ss_sp = stacks_.get() + n * STACK;
        state.context.uc_stack.ss_size = STACK;
        state.context.uc_link = nullptr;
        makecontext(&state.context, &Fibers::entry, 0);
        state.started = false;
    }

    static void entry() {
        Fibers& fibers = here();
        fibers.call_(fibers.work_);
        _longjmp(fibers.scheduler_, 2);
    }

    // Lets a thread run to its next barrier (true) or its end (false). Jumps between stacks make no system calls.
    bool resume(unsigned n) {
        current_ = n, inside_ = true;
        threadIdx = {n, 0, 0};
        const int reason = _setjmp(scheduler_);
        if (reason == 0) {
            State& state = states_[current_];
            if (state.started) _longjmp(state.jump, 1);
            state.started = true;
            setcontext(&state.context);
        }
        inside_ = false;
        return reason == 1;
    }

    std::unique_ptr<char[]> stacks_;
    std::unique_ptr<State[]> states_;
    unsigned count_ = 0, current_ = 0;
    bool inside_ = false;
    void* work_ = nullptr;
    void (*call_)(void*) = nullptr;
    jmp_buf scheduler_;
};

inline void __syncthreads() { Fibers::here().barrier(); }

// -------------------------------------------------------------------------------------------------------------- launch

template <class... A, size_t... N>
void run_on_host(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments, bool barriers,
                 std::index_sequence<N...>) {
    const std::tuple<A...> values(*static_cast<A*>(arguments[N])...);
    auto work = [&] { std::apply(kernel, values); };
#pragma omp parallel for schedule(dynamic) if (blocks > 4)
    for (unsigned block = 0; block < blocks; ++block) {
        gridDim = {blocks, 1, 1}, blockDim = {threads, 1, 1}, blockIdx = {block, 0, 0};
        if (barriers) {
            Fibers::here().run(threads, work);
        } else {
            for (unsigned n = 0; n < threads; ++n) threadIdx = {n, 0, 0}, work();
        }
    }
}

template <class... A>
void run_on_host(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments, bool barriers) {
    run_on_host(kernel, blocks, threads, arguments, barriers, std::index_sequence_for<A...>());
}
