// One pass over memory where torch takes several: what mpsoftmax/kernels/native.py does between matrix products.
//
// Plain functions on raw memory; native.py checks dtypes, shapes and contiguity and says what each is for. Arithmetic is
// float32 without contraction and with fixed lanes, so that neither the instruction set nor the place of an element in a
// loop changes a bit. Threads are those of the OpenMP runtime that torch has loaded: this library links none of its own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
// Best code for the processor at hand, chosen when the library is loaded; elsewhere the compiler's own choice.
#if !defined(FOR_EVERY_PROCESSOR) && defined(__x86_64__) && defined(__ELF__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#elif !defined(FOR_EVERY_PROCESSOR)
#define FOR_EVERY_PROCESSOR
#endif

using bfloat16 = uint16_t;

constexpr float NORM_FLOOR = 1e-12f;  // mpsoftmax.kernels.problem.NORM_FLOOR
constexpr int64_t LANES = 16;         // of a sum over a row
constexpr int64_t COLUMNS = 512;      // samples whose sums are held beside the logits
constexpr int64_t GROUP = 32;         // rows summed before they are added to the rest: keeps a long sum exact

// --- numbers -----------------------------------------------------------------------------------------------------

INLINE float number_of(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t bits_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

INLINE float load(float number) { return number; }
INLINE float load(bfloat16 number) { return number_of(static_cast<uint32_t>(number) << 16); }

INLINE void store(float* place, float number) { *place = number; }

INLINE void store(bfloat16* place, float number) {  // to nearest, ties to even; NaN stays NaN
    const uint32_t bits = bits_of(number);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    *place = static_cast<bfloat16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x to 1e-7, with gradual underflow, infinity above the range, NaN for NaN. Range reduction by ln 2 in two parts and
// the minimax polynomial of Cephes' expf (Moshier); the power of two in two halves, as one may not be a normal number.
INLINE float exponential(float x) {
    x = x < -110.0f ? -110.0f : x;
    x = x > 90.0f ? 90.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are an integer
    const float whole = shifted - 12582912.0f;
    float rest = x - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    const int32_t power = static_cast<int32_t>(bits_of(shifted) - bits_of(12582912.0f));
    const int32_t half = power >> 1;
    const float low = number_of((static_cast<uint32_t>(half) + 127u) << 23);
    const float high = number_of((static_cast<uint32_t>(power) - static_cast<uint32_t>(half) + 127u) << 23);
    return series * low * high;
}

template <class A, class B>
INLINE float inner_product(const A* a, const B* b, int64_t dim) {
    float lanes[LANES] = {0.0f};
    int64_t j = 0;
    for (; j + LANES <= dim; j += LANES)
        for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] += load(a[j + lane]) * load(b[j + lane]);
    for (int64_t lane = 0; j < dim; ++j, ++lane) lanes[lane] += load(a[j]) * load(b[j]);
    for (int64_t width = LANES / 2; width > 0; width /= 2)
        for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

// |row|; past float32's squares, where only the sum of them overflows, from float64.
template <class Row>
INLINE float norm_of(const Row* row, int64_t dim) {
    const float square = inner_product(row, row, dim);
    if (__builtin_expect(!std::isinf(square), 1)) return std::sqrt(square);
    double wide = 0.0;
    for (int64_t j = 0; j < dim; ++j) wide += static_cast<double>(load(row[j])) * load(row[j]);
    return static_cast<float>(std::sqrt(wide));
}

// --- threads -----------------------------------------------------------------------------------------------------

// Calls work(begin, end, thread) for parts of 0..num_rows-1.
template <class Work>
static void over_rows(int64_t num_rows, int32_t num_threads, const Work& work) {
    if (num_threads <= 1) {
        work(int64_t{0}, num_rows, 0);
        return;
    }
#pragma omp parallel num_threads(num_threads)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        work(num_rows * thread / all, num_rows * (thread + 1) / all, static_cast<int>(thread));
    }
}

// --- rows into a product -----------------------------------------------------------------------------------------

template <class Row, class Out>
INLINE void prepare(const Row* __restrict__ rows, Out* __restrict__ out, float* factor, int64_t begin, int64_t end,
                    int64_t dim, float scale) {
    for (int64_t i = begin; i < end; ++i) {
        const Row* row = rows + i * dim;
        const float norm = norm_of(row, dim);
        const float by = scale * (1.0f / (norm < NORM_FLOOR ? NORM_FLOOR : norm));
        factor[i] = by;
        if (out != nullptr)
            for (int64_t j = 0; j < dim; ++j) store(out + i * dim + j, load(row[j]) * by);
    }
}

#define PREPARE(NAME, ROW, OUT)                                                                                     \
    FOR_EVERY_PROCESSOR static void NAME##_part(const ROW* rows, OUT* out, float* factor, int64_t begin,            \
                                                int64_t end, int64_t dim, float scale) {                            \
        prepare(rows, out, factor, begin, end, dim, scale);                                                         \
    }                                                                                                               \
    extern "C" void NAME(const ROW* rows, OUT* out, float* factor, int64_t num_rows, int64_t dim, float scale,      \
                         int32_t num_threads) {                                                                     \
        over_rows(num_rows, num_threads, [=](int64_t begin, int64_t end, int) {                                     \
            NAME##_part(rows, out, factor, begin, end, dim, scale);                                                 \
        });                                                                                                         \
    }

PREPARE(prepare_float32_float32, float, float)
PREPARE(prepare_float32_bfloat16, float, bfloat16)
PREPARE(prepare_bfloat16_float32, bfloat16, float)
PREPARE(prepare_bfloat16_bfloat16, bfloat16, bfloat16)

// --- logits to exponentials --------------------------------------------------------------------------------------

template <class Entry, bool TIMES_FACTOR>
INLINE void exponentiate(Entry* entries, const float* factor, int64_t begin, int64_t end, int64_t batch, float shift,
                         float* sums) {
    for (int64_t left = 0; left < batch; left += COLUMNS) {
        const int64_t width = std::min(COLUMNS, batch - left);
        for (int64_t first = begin; first < end; first += GROUP) {
            float part[COLUMNS] = {0.0f};
            for (int64_t i = first; i < std::min(first + GROUP, end); ++i) {
                Entry* __restrict__ row = entries + i * batch + left;
                const float by = TIMES_FACTOR ? factor[i] : 1.0f;
                for (int64_t j = 0; j < width; ++j) {
                    const float logit = TIMES_FACTOR ? load(row[j]) * by : load(row[j]);
                    const float value = exponential(logit - shift);
                    part[j] += value;
                    store(row + j, TIMES_FACTOR ? value * by : value);
                }
            }
            for (int64_t j = 0; j < width; ++j) sums[left + j] += part[j];
        }
    }
}

#define EXPONENTIATE(NAME, ENTRY, TIMES_FACTOR)                                                                     \
    FOR_EVERY_PROCESSOR static void NAME##_part(ENTRY* entries, const float* factor, int64_t begin, int64_t end,    \
                                                int64_t batch, float shift, float* sums) {                          \
        exponentiate<ENTRY, TIMES_FACTOR>(entries, factor, begin, end, batch, shift, sums);                         \
    }                                                                                                               \
    extern "C" void NAME(ENTRY* entries, const float* factor, int64_t num_rows, int64_t batch, float shift,         \
                         float* sums, int32_t num_threads) {                                                        \
        over_rows(num_rows, num_threads, [=](int64_t begin, int64_t end, int thread) {                              \
            NAME##_part(entries, factor, begin, end, batch, shift, sums + thread * batch);                          \
        });                                                                                                         \
    }

EXPONENTIATE(exponentiate_float32, float, false)
EXPONENTIATE(exponentiate_bfloat16, bfloat16, false)
EXPONENTIATE(exponentiate_times_factor_float32, float, true)
EXPONENTIATE(exponentiate_times_factor_bfloat16, bfloat16, true)

// --- gradient to moved rows --------------------------------------------------------------------------------------

extern "C" struct Move {  // mpsoftmax.kernels.native_library.Move, field by field
    const float* gradient;     // [num_rows, dim] of the loss, |row| held constant
    float* rows;               // [num_rows, dim], as are the states
    float* first;              // momentum or first moment; null: none
    float* second;             // second moment; null: SGD
    const float* correction1;  // [num_rows] of AdamW
    const float* correction2;  // [num_rows] of AdamW
    int64_t num_rows, dim;
    float lr, decay, kept, beta1, beta2, rest1, rest2, eps;  // kept: 1 - lr decay; rest1, rest2: 1 - beta
    int32_t num_threads;
};

// The part of a gradient that turns the row: without its component along the row.
struct Turning {
    const float* gradient;
    const float* row;
    float along;

    INLINE_MEMBER Turning(const float* gradient, const float* row, int64_t dim) : gradient(gradient), row(row) {
        const float norm = norm_of(row, dim);
        const float floored = norm < NORM_FLOOR ? NORM_FLOOR : norm;
        along = inner_product(gradient, row, dim) / floored / floored;
    }
    INLINE_MEMBER float operator[](int64_t j) const { return gradient[j] - along * row[j]; }
};

INLINE void by_sgd(const Move& move, const float* __restrict__ gradient, float* __restrict__ row,
                   float* __restrict__ momentum) {
    const Turning turning(gradient, row, move.dim);
    const float lr = move.lr, decay = move.decay, beta = move.beta1;
    for (int64_t j = 0, dim = move.dim; j < dim; ++j) {
        float step = turning[j] + decay * row[j];
        if (momentum != nullptr) momentum[j] = step = beta * momentum[j] + step;
        row[j] -= lr * step;
    }
}

INLINE void by_adamw(const Move& move, const float* __restrict__ gradient, float* __restrict__ row,
                     float* __restrict__ first, float* __restrict__ second, float correction1, float correction2) {
    const Turning turning(gradient, row, move.dim);
    const float lr = move.lr, kept = move.kept, eps = move.eps;
    const float beta2 = move.beta2, rest1 = move.rest1, rest2 = move.rest2;
    for (int64_t j = 0, dim = move.dim; j < dim; ++j) {
        const float g = turning[j];
        const float mean = first[j] + rest1 * (g - first[j]);
        const float square = beta2 * second[j] + rest2 * g * g;
        first[j] = mean;
        second[j] = square;
        row[j] = row[j] * kept - lr * (mean / correction1 / (std::sqrt(square) / correction2 + eps));
    }
}

FOR_EVERY_PROCESSOR static void move_part(const Move& move, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * move.dim;
        if (move.second != nullptr)
            by_adamw(move, move.gradient + at, move.rows + at, move.first + at, move.second + at, move.correction1[i],
                     move.correction2[i]);
        else
            by_sgd(move, move.gradient + at, move.rows + at, move.first == nullptr ? nullptr : move.first + at);
    }
}

extern "C" void move_rows(const Move* move) {
    over_rows(move->num_rows, move->num_threads,
              [=](int64_t begin, int64_t end, int) { move_part(*move, begin, end); });
}

// --- which source this is ----------------------------------------------------------------------------------------

extern "C" const char* source_digest() { return SOURCE_DIGEST; }
