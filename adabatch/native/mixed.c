/* Combinations of maps: map r of `out` is the sum of factors[k] * (map columns[k] of `in`), for k from starts[r]
 * to starts[r + 1], added up from 0 in that order.
 *
 * A map has `samples` vectors of `c` floats; vector i of map m is at in + m * in_map + i * in_sample, and so for
 * out. With factors 0, 1, -1 and powers of two the products are exact, and the bits are those of a loop over k.
 */
#include <stdint.h>
#include <string.h>

/* As wide as the processor's vectors: gcc splits wider ones through memory, which took four times as long. */
#if defined(__AVX512F__)
#define WIDTH 16 /* floats */
#define WIDE 4   /* vectors of sums that stay in registers */
#elif defined(__AVX__)
#define WIDTH 8
#define WIDE 8
#else
#define WIDTH 4
#define WIDE 8
#endif

typedef float lanes __attribute__((vector_size(4 * WIDTH), aligned(4)));

/* One sample: `wide` vectors of channels at once. */
static inline __attribute__((always_inline)) void mix(const float *in, float *out, const int64_t *starts,
                                                       const int64_t *columns, const float *factors, int64_t maps,
                                                       int64_t in_map, int64_t out_map, int wide) {
    for (int64_t r = 0; r < maps; r++) {
        lanes sums[WIDE] = {0};
        for (int64_t k = starts[r]; k < starts[r + 1]; k++) {
            const lanes *from = (const lanes *)(in + columns[k] * in_map);
            for (int i = 0; i < wide; i++) sums[i] += factors[k] * from[i];
        }
        memcpy(out + r * out_map, sums, wide * sizeof(lanes));
    }
}

void mixed(const float *in, float *out, const int64_t *starts, const int64_t *columns, const float *factors, int64_t maps,
           int64_t samples, int64_t c, int64_t in_map, int64_t in_sample, int64_t out_map, int64_t out_sample, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples; i++) {
        const float *from = in + i * in_sample;
        float *to = out + i * out_sample;
        int64_t at = 0;
        for (; at + WIDE * WIDTH <= c; at += WIDE * WIDTH) mix(from + at, to + at, starts, columns, factors, maps, in_map, out_map, WIDE);
        for (; at + WIDTH <= c; at += WIDTH) mix(from + at, to + at, starts, columns, factors, maps, in_map, out_map, 1);
        for (; at < c; at++)
            for (int64_t r = 0; r < maps; r++) {
                float sum = 0;
                for (int64_t k = starts[r]; k < starts[r + 1]; k++) sum += factors[k] * from[columns[k] * in_map + at];
                to[r * out_map + at] = sum;
            }
    }
}
