/* Ghost batch norm with what follows it: y = clip((x - mean_g) / sqrt(var_g + eps) * weight + bias + plus).
 *
 * x: [samples, pixels, channels], the memory of a channels-last tensor. A group is cut into chunks of one
 * sample, or of several where a sample has few pixels: chunk k has samples borders[k] to borders[k + 1] and
 * belongs to group owners[k], whose chunks are firsts[g] to firsts[g + 1].
 *
 * Sums are made for each chunk, then over a group's chunks in order: the bits depend neither on the number of
 * threads nor on which groups a call holds. A chunk's moments are two passes over what lies in the cache,
 * joined by Chan, Golub and LeVeque's formula (1983), so that no variance is a difference of large numbers.
 *
 * The file includes itself for each type T of x, y and gradients; A is what is added up in.
 */
#ifndef T

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widened(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest, ties to even; NaN stays one. */
static inline bf16 rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bf16 near = (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return value == value ? near : (bf16)((bits >> 16) | 0x40);
}

#define BLOCK 64 /* channels whose sums stay in registers */

#define T bf16
#define A float
#define NAME(name) name##_bf16
#define LOAD(at) widened(*(at))
#define STORE(at, value) (*(at) = rounded(value))
#include "ghost.c"
#undef T
#undef A
#undef NAME
#undef LOAD
#undef STORE

#define LOAD(at) (*(at))
#define STORE(at, value) (*(at) = (value))
#define T float
#define A float
#define NAME(name) name##_float
#include "ghost.c"
#undef T
#undef A
#undef NAME

#define T double
#define A double
#define NAME(name) name##_double
#include "ghost.c"

#else

/* Comparisons that let NaN through. */
static inline A NAME(clipped)(A value, A low, A high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

/* An end of the clip as y can hold it: y meets it exactly. */
static inline A NAME(end)(double value) {
    T held;
    STORE(&held, (A)value);
    return LOAD(&held);
}

/* Of a gradient that arrives at y, behind the clip, what lies inside goes on, NaN too; ReLU has no upper end.
 * The gradient is read in any case: a load under a condition is no vector in bf16 with AVX2, and took ten times. */
static inline __attribute__((always_inline)) A NAME(passed)(const T *y, const T *dy, int64_t at, A low, A high) {
    A d = LOAD(dy + at);
    if (!y) return d;
    A value = LOAD(y + at);
    return (value <= low) | ((value >= high) & (high < INFINITY)) ? 0 : d;
}

/* `count` is a constant where this is called for full blocks: the loops over channels become vectors. */
static inline __attribute__((always_inline)) void NAME(moments_of)(const T *x, int64_t pixels, int64_t c, int count,
                                                                    A *mean, A *square) {
    A sum[BLOCK] = {0}, middle[BLOCK], distance[BLOCK] = {0};
    for (int64_t p = 0; p < pixels; p++)
        for (int j = 0; j < count; j++) sum[j] += LOAD(x + p * c + j);
    for (int j = 0; j < count; j++) middle[j] = sum[j] / pixels;
    for (int64_t p = 0; p < pixels; p++)
        for (int j = 0; j < count; j++) {
            A d = LOAD(x + p * c + j) - middle[j];
            distance[j] += d * d;
        }
    memcpy(mean, middle, count * sizeof(A));
    memcpy(square, distance, count * sizeof(A));
}

/* Means and sums of squared distances from them, of `pixels` vectors. */
static void NAME(moments)(const T *x, int64_t pixels, int64_t c, A *mean, A *square) {
    for (int64_t b = 0; b < c; b += BLOCK) {
        int64_t count = c - b < BLOCK ? c - b : BLOCK;
        if (count == 64) NAME(moments_of)(x + b, pixels, c, 64, mean + b, square + b);
        else if (count == 32) NAME(moments_of)(x + b, pixels, c, 32, mean + b, square + b);
        else if (count == 16) NAME(moments_of)(x + b, pixels, c, 16, mean + b, square + b);
        else NAME(moments_of)(x + b, pixels, c, (int)count, mean + b, square + b);
    }
}

/* parts: [chunks, 2, c], scratch. plus: like x, or NULL. mean, var (unbiased), inverse: [groups, c]. */
void NAME(forward)(const T *x, const T *plus, T *y, const A *weight, const A *bias, const int64_t *borders,
                   const int64_t *owners, const int64_t *firsts, int64_t groups, int64_t pixels, int64_t c, double eps,
                   double lower, double upper, A *mean, A *var, A *inverse, A *parts, int threads) {
    int64_t chunks = firsts[groups], size = pixels * c;
    A low = NAME(end)(lower), high = NAME(end)(upper);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++)
            NAME(moments)(x + borders[k] * size, (borders[k + 1] - borders[k]) * pixels, c, parts + 2 * k * c,
                          parts + 2 * k * c + c);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            A *m = mean + g * c, *v = var + g * c;
            int64_t first = firsts[g], end = firsts[g + 1], values = (borders[end] - borders[first]) * pixels;
            memset(m, 0, c * sizeof(A));
            memset(v, 0, c * sizeof(A));
            for (int64_t k = first; k < end; k++) {
                A share = (A)((borders[k + 1] - borders[k]) * pixels) / values;
                for (int64_t j = 0; j < c; j++) m[j] += share * parts[2 * k * c + j];
            }
            for (int64_t k = first; k < end; k++) {
                A count = (A)((borders[k + 1] - borders[k]) * pixels);
                for (int64_t j = 0; j < c; j++) {
                    A d = parts[2 * k * c + j] - m[j];
                    v[j] += parts[2 * k * c + c + j] + count * d * d;
                }
            }
            for (int64_t j = 0; j < c; j++) {
                inverse[g * c + j] = (A)(1 / sqrt((double)v[j] / values + eps));
                v[j] /= values - 1;
            }
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++) {
            int64_t g = owners[k], at = borders[k] * size, end = borders[k + 1] * size;
            const A *m = mean + g * c;
            A scale[c];
            for (int64_t j = 0; j < c; j++) scale[j] = weight[j] * inverse[g * c + j];
            for (; at < end; at += c)
                if (plus)
                    for (int64_t j = 0; j < c; j++) {
                        A value = (LOAD(x + at + j) - m[j]) * scale[j] + bias[j] + LOAD(plus + at + j);
                        STORE(y + at + j, NAME(clipped)(value, low, high));
                    }
                else
                    for (int64_t j = 0; j < c; j++) {
                        A value = (LOAD(x + at + j) - m[j]) * scale[j] + bias[j];
                        STORE(y + at + j, NAME(clipped)(value, low, high));
                    }
        }
    }
}

static inline __attribute__((always_inline)) void NAME(sums_of)(const T *x, const T *y, const T *dy, int64_t pixels,
                                                                 int64_t c, int count, const A *mean, A low, A high,
                                                                 A *plain, A *product) {
    A s[BLOCK] = {0}, q[BLOCK] = {0};
    for (int64_t p = 0; p < pixels; p++)
        for (int j = 0; j < count; j++) {
            A d = NAME(passed)(y, dy, p * c + j, low, high);
            s[j] += d;
            q[j] += d * (LOAD(x + p * c + j) - mean[j]);
        }
    memcpy(plain, s, count * sizeof(A));
    memcpy(product, q, count * sizeof(A));
}

/* y: of forward, or NULL where nothing was clipped. dplus: like x, or NULL. dweight, dbias: [groups, c]. */
void NAME(backward)(const T *x, const T *y, const T *dy, T *dx, T *dplus, const A *weight, const int64_t *borders,
                    const int64_t *owners, const int64_t *firsts, int64_t groups, int64_t pixels, int64_t c,
                    double lower, double upper, const A *mean, const A *inverse, A *dweight, A *dbias, A *parts,
                    int threads) {
    int64_t chunks = firsts[groups], size = pixels * c;
    A low = NAME(end)(lower), high = NAME(end)(upper);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++) {
            const A *m = mean + owners[k] * c;
            int64_t vectors = (borders[k + 1] - borders[k]) * pixels;
            for (int64_t b = 0; b < c; b += BLOCK) {
                int64_t count = c - b < BLOCK ? c - b : BLOCK, at = borders[k] * size + b;
                A *s = parts + 2 * k * c + b, *q = s + c;
                if (count == 64) NAME(sums_of)(x + at, y ? y + at : 0, dy + at, vectors, c, 64, m + b, low, high, s, q);
                else if (count == 32) NAME(sums_of)(x + at, y ? y + at : 0, dy + at, vectors, c, 32, m + b, low, high, s, q);
                else if (count == 16) NAME(sums_of)(x + at, y ? y + at : 0, dy + at, vectors, c, 16, m + b, low, high, s, q);
                else NAME(sums_of)(x + at, y ? y + at : 0, dy + at, vectors, c, (int)count, m + b, low, high, s, q);
            }
        }
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            A *w = dweight + g * c, *b = dbias + g * c;
            memset(w, 0, c * sizeof(A));
            memset(b, 0, c * sizeof(A));
            for (int64_t k = firsts[g]; k < firsts[g + 1]; k++)
                for (int64_t j = 0; j < c; j++) {
                    b[j] += parts[2 * k * c + j];
                    w[j] += parts[2 * k * c + c + j];
                }
            for (int64_t j = 0; j < c; j++) w[j] *= inverse[g * c + j];
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++) {
            int64_t g = owners[k], at = borders[k] * size, end = borders[k + 1] * size;
            A values = (A)((borders[firsts[g + 1]] - borders[firsts[g]]) * pixels), scale[c], slope[c], shift[c];
            const A *m = mean + g * c;
            /* dx = weight / sigma (d - mean(d) - x_hat mean(d x_hat)) */
            for (int64_t j = 0; j < c; j++) {
                A invert = inverse[g * c + j];
                scale[j] = weight[j] * invert;
                slope[j] = -scale[j] * invert * dweight[g * c + j] / values;
                shift[j] = -scale[j] * dbias[g * c + j] / values;
            }
            for (; at < end; at += c) {
                if (dplus)
                    for (int64_t j = 0; j < c; j++) STORE(dplus + at + j, NAME(passed)(y, dy, at + j, low, high));
                for (int64_t j = 0; j < c; j++) {
                    A d = NAME(passed)(y, dy, at + j, low, high);
                    STORE(dx + at + j, scale[j] * d + slope[j] * (LOAD(x + at + j) - m[j]) + shift[j]);
                }
            }
        }
    }
}

#endif
