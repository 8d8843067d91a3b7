/* Combinations of maps: map r of `out` is the sum of factors[k] * (map columns[k] of `in`), for k from starts[r]
 * to starts[r + 1], added up from 0 in that order.
 *
 * A map has `samples` vectors of `c` floats; vector i of map m is at in + m * in_map + i * in_sample, and so for
 * out. With factors 0, 1, -1 and powers of two the products are exact, and the bits are those of a loop over k.
 */
#include <stdint.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(64), aligned(4)));
#define WIDTH 16  /* floats of `lanes` */
#define AT(from, i) (*(const lanes *)((from) + WIDTH * (i)))

/* One sample: `wide` = 4, 2 or 1 lanes at once, whose sums stay in registers. */
static inline __attribute__((always_inline)) void mix(const float *in, float *out, const int64_t *starts,
                                                       const int64_t *columns, const float *factors, int64_t maps,
                                                       int64_t in_map, int64_t out_map, int wide) {
    for (int64_t r = 0; r < maps; r++) {
        lanes a = {0}, b = {0}, c = {0}, d = {0};
        for (int64_t k = starts[r]; k < starts[r + 1]; k++) {
            const float *from = in + columns[k] * in_map;
            float factor = factors[k];
            a += factor * AT(from, 0);
            if (wide > 1) b += factor * AT(from, 1);
            if (wide > 2) c += factor * AT(from, 2), d += factor * AT(from, 3);
        }
        float *to = out + r * out_map;
        memcpy(to, &a, sizeof a);
        if (wide > 1) memcpy(to + WIDTH, &b, sizeof b);
        if (wide > 2) memcpy(to + 2 * WIDTH, &c, sizeof c), memcpy(to + 3 * WIDTH, &d, sizeof d);
    }
}

void mixed(const float *in, float *out, const int64_t *starts, const int64_t *columns, const float *factors, int64_t maps,
           int64_t samples, int64_t c, int64_t in_map, int64_t in_sample, int64_t out_map, int64_t out_sample, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples; i++) {
        const float *from = in + i * in_sample;
        float *to = out + i * out_sample;
        int64_t at = 0;
        for (; at + 4 * WIDTH <= c; at += 4 * WIDTH) mix(from + at, to + at, starts, columns, factors, maps, in_map, out_map, 4);
        for (; at + WIDTH <= c; at += WIDTH) mix(from + at, to + at, starts, columns, factors, maps, in_map, out_map, 1);
        for (; at < c; at++)
            for (int64_t r = 0; r < maps; r++) {
                float sum = 0;
                for (int64_t k = starts[r]; k < starts[r + 1]; k++) sum += factors[k] * from[columns[k] * in_map + at];
                to[r * out_map + at] = sum;
            }
    }
}
