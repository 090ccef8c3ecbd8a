/* Layers of the Poincaré ball on a CPU: the formulas of lorentz.py, forward and backward, as loops over pixels.
 *
 * Compiled twice by _native.py, with SINGLE for float and without for double. Tensors are contiguous [N, K, H, W].
 * A pass works on the images [first, last) of a Job, in blocks of pixels whose numbers stay in the cache: channels
 * outside, pixels inside, so that every inner loop runs over contiguous numbers. What a pass adds up over pixels it
 * writes per image, in double, so that no result depends on how many threads there are. Passes return 1 when
 * there is no memory, else 0.
 *
 * Names: a = slope·P − level·shift, t = arsinh a, V = sinh(steepness · t) the point before its projection, W = cap · V
 * the point, x = X₀ − 1 its excess, M and B the mean and the bias with excesses m and b, Z what the norm makes of W,
 * Y the skip's point and Q = Z ⊕ Y. A name with a leading g is the gradient of the loss in that quantity.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef SINGLE
typedef float real;
#define SQRT sqrtf
#define ABS fabsf
#define SIGNED copysignf
#define SERIES_BELOW 5e-2f
#else
typedef double real;
#define SQRT sqrt
#define ABS fabs
#define SIGNED copysign
#define SERIES_BELOW 1e-3
#endif
#define R(x) ((real)(x))

#define EACH _Pragma("omp simd")
#define EACH_SUM(s) _Pragma(#s)

#define LARGEST_BLOCK 1024
#define LARGEST_ANGLE R(30)
#define SINGULAR R(1e-12)
#define SHORTEST_DIRECTION 1e-15

/* What is kept of a pixel between passes: rows of Job.pixel. */
enum { CAP, SLOPE, LEVEL, SLOPE_BY, LEVEL_BY, TIME, PULL, GAP, PIXEL };

typedef struct {
    int64_t channels, pixels, block, blocks; /* K, H′W′, pixels in a block, blocks of an image */
    int64_t inverted, relu, normed, frechet;
    double limit;                     /* of tangents; of points it is sinh(2 limit) */
    double m, b, f, gain;             /* excesses of mean and bias, their gap, γ/(variance + eps) */
    double g_distance2, g_time;       /* backward: of each d² and of each excess, through the variance and the mean */
    double old_m, pull_mean;          /* Fréchet: excess of the mean before the last step, ⟨pull, that mean⟩ */
    const real *products, *field;     /* P [N, K, H′, W′] and s² [N, 1, H′, W′] */
    const real *shift, *steepness;    /* [K] */
    const real *skip, *tangents, *grad; /* [N, K, H′, W′] or null */
    const real *mean, *bias, *g_mean; /* [K]; g_mean: of each point, through the mean */
    const real *old_mean, *pull;      /* [K]: Fréchet: the mean before the last step, H⁻¹ gradient */
    real *out, *g_products, *g_field, *g_skip;
    real *points, *by_a, *by_steepness, *grads; /* scratch [N, blocks, K, block] */
    real *pixel;                      /* scratch [N, blocks, PIXEL, block] */
    double *sums;                     /* [N, as many as the pass adds up] */
} Job;

/* ---- functions of one number --------------------------------------------------------------------------------- */

#ifdef SINGLE
/* exp(x) − 1, 0 ≤ x ≤ 87; polynomials: Cephes expf, logf. */
static inline float expm1_(float x)
{
    const float shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (int32_t)((uint32_t)bits << 23) + 0x3F800000;
    float power;
    memcpy(&power, &bits, 4);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    return power * p + (power - 1.f);
}

/* log(1 + y), y ≥ 0. */
static inline float log1p_(float y)
{
    const float u = 1.f + y;
    int32_t bits;
    memcpy(&bits, &u, 4);
    const int32_t e = (bits - 0x3F3504F3) >> 23; /* u = 2ᵉ (1 + f), f from √½ − 1 to √2 − 1 */
    bits = (127 - e) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, 4);
    const float f = y * scale + (scale - 1.f), z = f * f, n = (float)e;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * z - 2.12194440e-4f * n - 0.5f * z;
    return 0.693359375f * n + (f + p);
}
#else
static inline double expm1_(double x) { return expm1(x); }
static inline double log1p_(double y) { return log1p(y); }
#endif

/* sinh(√t)/√t and cosh √t. */
static inline void sinhc(real t, real *value, real *cosh)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t, root = SQRT(far), e = expm1_(root);
    const real by = R(0.5) * e / ((1 + e) * root);
    const real near = 1 + t * (R(1. / 6) + t * (R(1. / 120) + t * (R(1. / 5040) + t * R(1. / 362880))));
    const real near_cosh = 1 + t * (R(1. / 2) + t * (R(1. / 24) + t * (R(1. / 720) + t * R(1. / 40320))));
    *value = t < SERIES_BELOW ? near : by * (2 + e);
    *cosh = t < SERIES_BELOW ? near_cosh : 1 + by * e * root;
}

/* The derivative of sinh(√t)/√t, of t, the value and cosh √t. */
static inline real sinhc_by(real t, real value, real cosh)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t;
    const real near =
        R(1. / 6) + t * (R(1. / 60) + t * (R(1. / 1680) + t * (R(1. / 90720) + t * R(1. / 7983360))));
    return t < SERIES_BELOW ? near : (cosh - value) / (2 * far);
}

/* arsinh(√t)/√t, with x = √(1 + t) − 1, which is t/(1 + √(1 + t)). */
static inline real asinhc(real t, real x)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t, root = SQRT(far);
    const real near = 1 + t * (R(-1. / 6) + t * (R(3. / 40) + t * (R(-15. / 336) + t * R(105. / 3456))));
    return t < SERIES_BELOW ? near : log1p_(root + x) / root;
}

/* Its derivative in t. */
static inline real asinhc_by(real t, real x, real value)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t, time = 1 + x;
    const real near =
        R(-1. / 6) + t * (R(3. / 20) + t * (R(-15. / 112) + t * (R(35. / 288) - t * R(315. / 2816))));
    return t < SERIES_BELOW ? near : (1 - value * time) / (2 * far * time);
}

/* tanh(√t)/√t, t ≤ (limit of tangents)². */
static inline real tanhc(real t)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t, root = SQRT(far), e = expm1_(2 * root);
    const real near = 1 + t * (R(-1. / 3) + t * (R(2. / 15) + t * (R(-17. / 315) + t * R(62. / 2835))));
    return t < SERIES_BELOW ? near : e / ((e + 2) * root);
}

static inline real tanhc_by(real t, real value)
{
    const real far = t < SERIES_BELOW ? SERIES_BELOW : t;
    const real near =
        R(-1. / 3) + t * (R(4. / 15) + t * (R(-17. / 105) + t * (R(248. / 2835) - t * R(1382. / 31185))));
    return t < SERIES_BELOW ? near : (1 - far * value * value - value) / (2 * far);
}

static inline real excess(real square) { return square / (1 + SQRT(1 + square)); }

/* What brings a vector of this ‖·‖² to at most `limit`. */
static inline real shortened(real square, real limit)
{
    const int beyond = square > limit * limit;
    return beyond ? limit / SQRT(beyond ? square : 1) : 1;
}

/* exp₀ of a tangent of this ‖·‖²: factor and its derivative; time = cosh 2s′. */
static inline void lift(real square, real limit, real *factor, real *by, real *time)
{
    const real most = limit * limit, cut = 4 * (square > most ? most : square);
    real value, cosh;
    sinhc(cut, &value, &cosh);
    *factor = 2 * value * shortened(square, limit);
    *time = cosh;
    *by = square > most ? R(-0.5) * *factor / square : 8 * sinhc_by(cut, value, cosh);
}

/* The same of a tangent that is not too long. */
static inline void lift_inside(real square, real *factor, real *by, real *time)
{
    real value;
    sinhc(4 * square, &value, time);
    *factor = 2 * value;
    *by = 8 * sinhc_by(4 * square, value, *time);
}

/* The official code's slope and level (see lorentz.scores) and their derivatives in s². */
static inline void inverted_lift(real square, real limit, real *slope, real *slope_by, real *level, real *level_by)
{
    const real most = limit * limit, cut = square > most ? most : square;
    const real tanh = tanhc(cut), tanh_by = tanhc_by(cut, tanh), lam = 2 * (1 - cut * tanh * tanh);
    const real lam_by = -2 * tanh * (tanh + 2 * cut * tanh_by);
    *slope = lam * tanh * shortened(square, limit);
    *level = lam - 1;
    *slope_by = square > most ? R(-0.5) * *slope / square : lam_by * tanh + lam * tanh_by;
    *level_by = square > most ? 0 : lam_by;
}

/* ---- blocks --------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t image, start, index; /* index: of the block among all of them */
    int size;
} Block;

static inline Block block_of(const Job *j, int64_t n, int64_t k)
{
    const int64_t start = k * j->block, left = j->pixels - start;
    return (Block){n, start, n * j->blocks + k, (int)(left < j->block ? left : j->block)};
}

/* Where channel 0 of a block begins in a tensor [N, K, H′, W′], channels lying j->pixels apart. */
static inline int64_t place(const Job *j, const Block *at) { return at->image * j->channels * j->pixels + at->start; }
static inline int64_t scratch(const Job *j, const Block *at) { return at->index * j->channels * j->block; }
static inline real *pixels(const Job *j, const Block *at) { return j->pixel + at->index * PIXEL * j->block; }

typedef real Row[LARGEST_BLOCK] __attribute__((aligned(64)));

static inline int any_beyond(const real *restrict square, real limit, int size)
{
    const real most = limit * limit;
    int beyond = 0;
    EACH_SUM(omp simd reduction(| : beyond)) for (int i = 0; i < size; i++) beyond |= square[i] > most;
    return beyond;
}

/* `shortened` of a block's pixels; whether that is anything but 1. */
static int shorten(const real *restrict square, real limit, int size, real *restrict cap)
{
    const int beyond = any_beyond(square, limit, size);
    if (beyond) {
        EACH for (int i = 0; i < size; i++) cap[i] = shortened(square[i], limit);
    } else {
        EACH for (int i = 0; i < size; i++) cap[i] = 1;
    }
    return beyond;
}

static void lifts(const real *restrict square, real limit, int size, real *restrict factor, real *restrict by,
                  real *restrict time)
{
    if (any_beyond(square, limit, size)) {
        EACH for (int i = 0; i < size; i++) lift(square[i], limit, factor + i, by + i, time + i);
    } else {
        EACH for (int i = 0; i < size; i++) lift_inside(square[i], factor + i, by + i, time + i);
    }
}

/* Slope and level of a block's pixels and their derivatives in s². */
static void slopes(const Job *j, const Block *at, real *restrict slope, real *restrict level,
                   real *restrict slope_by, real *restrict level_by)
{
    const real *restrict square = j->field + at->image * j->pixels + at->start;
    const real limit = (real)j->limit, most = limit * limit;
    if (j->inverted) {
        EACH for (int i = 0; i < at->size; i++)
            inverted_lift(square[i], limit, slope + i, slope_by + i, level + i, level_by + i);
    } else {
        lifts(square, limit, at->size, slope, slope_by, level);
        EACH for (int i = 0; i < at->size; i++) level_by[i] = square[i] > most ? 0 : slope[i];
    }
}

/* V of a block into v [K, block]; unless null its derivatives in a and in the steepness; cap [block] of its pixels,
 * and their ‖V‖². 1 if one is capped. */
static inline __attribute__((always_inline)) int unprojected(const Job *j, const Block *at, const real *restrict slope,
                                                             const real *restrict level, real *restrict v,
                                                             real *restrict by_a, real *restrict by_steepness,
                                                             real *restrict cap, real *restrict square)
{
    const int size = at->size;
    EACH for (int i = 0; i < size; i++) square[i] = 0;
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict p = j->products + place(j, at) + k * j->pixels;
        real *restrict vk = v + k * j->block;
        real *restrict by_ak = by_a ? by_a + k * j->block : 0;
        real *restrict by_sk = by_steepness ? by_steepness + k * j->block : 0;
        const real shift = j->shift[k], steepness = j->steepness[k];
        EACH for (int i = 0; i < size; i++) {
            const real a = slope[i] * p[i] - level[i] * shift, b = ABS(a), bb = b * b, root = SQRT(1 + bb);
            const real angle = log1p_(b + bb / (1 + root)), score = steepness * angle;
            const real e = expm1_(score > LARGEST_ANGLE ? LARGEST_ANGLE : score);
            real inverse; /* 1/(1 + e) */
            if (by_a) {
                const real both = 1 / ((1 + e) * root), inside = score > LARGEST_ANGLE ? 0 : 1;
                inverse = both * root;
                const real cosh = inside * (1 + R(0.5) * e * e * inverse);
                by_ak[i] = cosh * steepness * (both * (1 + e));
                by_sk[i] = SIGNED(cosh * angle, a);
            } else {
                inverse = 1 / (1 + e);
            }
            const real w = SIGNED(R(0.5) * e * (2 + e) * inverse, a);
            vk[i] = w;
            square[i] += w * w;
        }
    }
    return shorten(square, (real)sinh(2 * j->limit), size, cap);
}

static inline real total(const real *restrict x, int size)
{
    real sum = 0;
    EACH_SUM(omp simd reduction(+ : sum)) for (int i = 0; i < size; i++) sum += x[i];
    return sum;
}

/* From Z before its projection [K, block] (overwritten by Q) to the tangents: projection, ⊕ skip, log₀, ReLU. */
static void finish(const Job *j, const Block *at, real *restrict z, const real *restrict square)
{
    const int size = at->size;
    const int64_t stride = j->block, from = place(j, at);
    const real limit = (real)j->limit, point_limit = (real)sinh(2 * j->limit);
    Row cap, factor, q;
    shorten(square, point_limit, size, cap);
    if (j->skip) {
        Row vv, zv, by, time;
        EACH for (int i = 0; i < size; i++) vv[i] = zv[i] = q[i] = 0;
        for (int64_t k = 0; k < j->channels; k++) {
            const real *restrict v = j->skip + from + k * j->pixels, *restrict zk = z + k * stride;
            EACH for (int i = 0; i < size; i++) {
                vv[i] += v[i] * v[i];
                zv[i] += v[i] * zk[i];
            }
        }
        lifts(vv, limit, size, factor, by, time);
        EACH for (int i = 0; i < size; i++) {
            const real z_time = SQRT(1 + cap[i] * cap[i] * square[i]);
            cap[i] *= time[i] + cap[i] * factor[i] * zv[i] / (1 + z_time);
        }
        for (int64_t k = 0; k < j->channels; k++) {
            const real *restrict v = j->skip + from + k * j->pixels;
            real *restrict zk = z + k * stride;
            EACH for (int i = 0; i < size; i++) {
                const real sum = factor[i] * v[i] + cap[i] * zk[i];
                zk[i] = sum;
                q[i] += sum * sum;
            }
        }
        EACH for (int i = 0; i < size; i++) cap[i] = R(0.5) * asinhc(q[i], excess(q[i]));
    } else {
        EACH for (int i = 0; i < size; i++) {
            const real zz = cap[i] * cap[i] * square[i];
            cap[i] *= R(0.5) * asinhc(zz, excess(zz));
        }
    }
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict zk = z + k * stride;
        real *restrict out = j->out + from + k * j->pixels;
        if (j->relu) {
            EACH for (int i = 0; i < size; i++) {
                const real tangent = cap[i] * zk[i];
                out[i] = tangent < 0 ? 0 : tangent;
            }
        } else {
            EACH for (int i = 0; i < size; i++) out[i] = cap[i] * zk[i];
        }
    }
}

/* The gradient in Z before its projection, into g [K, block], of the gradient in the tangents; g_skip is written. */
static void finish_backward(const Job *j, const Block *at, const real *restrict z, const real *restrict square,
                            real *restrict g)
{
    const int size = at->size;
    const int64_t stride = j->block, from = place(j, at);
    const real limit = (real)j->limit, point_limit = (real)sinh(2 * j->limit), most = point_limit * point_limit;
    Row cap, gz, vv, zv, gv, to_g, to_v, to_z, v_by_g, v_by_v, v_by_z;
    shorten(square, point_limit, size, cap);
    EACH for (int i = 0; i < size; i++) gz[i] = vv[i] = zv[i] = gv[i] = 0;
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict grad = j->grad + from + k * j->pixels, *restrict zk = z + k * stride;
        real *restrict gk = g + k * stride;
        if (j->relu) {
            const real *restrict out = j->tangents + from + k * j->pixels;
            EACH for (int i = 0; i < size; i++) gk[i] = out[i] <= 0 ? 0 : grad[i];
        } else {
            EACH for (int i = 0; i < size; i++) gk[i] = grad[i];
        }
        EACH for (int i = 0; i < size; i++) gz[i] += gk[i] * zk[i];
        if (j->skip) {
            const real *restrict v = j->skip + from + k * j->pixels;
            EACH for (int i = 0; i < size; i++) {
                vv[i] += v[i] * v[i];
                zv[i] += v[i] * zk[i];
                gv[i] += v[i] * gk[i];
            }
        }
    }
    if (!j->skip) {
        EACH for (int i = 0; i < size; i++) {
            const real zz = cap[i] * cap[i] * square[i], x = excess(zz);
            const real log = asinhc(zz, x), log_by = asinhc_by(zz, x, log);
            /* τ = log/2, of ‖Q‖² = zz: gQ = τ g + 2 τ′ ⟨g, Q⟩ Q */
            const real g_z = R(0.5) * log, z_z = log_by * cap[i] * cap[i] * gz[i];
            const real along = (g_z * gz[i] + z_z * square[i]) / (square[i] > most ? square[i] : 1);
            to_g[i] = cap[i] * g_z;
            to_z[i] = cap[i] * (z_z - (square[i] > most ? along : 0));
        }
        for (int64_t k = 0; k < j->channels; k++) {
            const real *restrict zk = z + k * stride;
            real *restrict gk = g + k * stride;
            EACH for (int i = 0; i < size; i++) gk[i] = to_g[i] * gk[i] + to_z[i] * zk[i];
        }
        return;
    }
    Row factor, factor_by, time, tilt, qq;
    lifts(vv, limit, size, factor, factor_by, time);
    EACH for (int i = 0; i < size; i++) {
        const real z_time = SQRT(1 + cap[i] * cap[i] * square[i]);
        tilt[i] = time[i] + cap[i] * factor[i] * zv[i] / (1 + z_time); /* Q = Y + tilt Z */
        qq[i] = 0;
    }
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict v = j->skip + from + k * j->pixels, *restrict zk = z + k * stride;
        EACH for (int i = 0; i < size; i++) {
            const real sum = factor[i] * v[i] + tilt[i] * cap[i] * zk[i];
            qq[i] += sum * sum;
        }
    }
    EACH for (int i = 0; i < size; i++) {
        const real x = excess(qq[i]), log = asinhc(qq[i], x), tau = R(0.5) * log;
        const real lifted = factor[i], r = tilt[i] * cap[i];
        const real z_time = SQRT(1 + cap[i] * cap[i] * square[i]), by_time = 1 / (1 + z_time);
        const real to_q = asinhc_by(qq[i], x, log) * (lifted * gv[i] + r * gz[i]); /* gQ = τ g + to_q Q */
        const real g_tilt = cap[i] * (tau * gz[i] + to_q * (lifted * zv[i] + r * square[i]));
        const real g_zy = g_tilt * by_time, g_time = -g_zy * by_time * cap[i] * lifted * zv[i];
        /* gZ = g_g g + g_v V + g_z Z, with Z before the projection */
        const real g_g = tilt[i] * tau, g_v = lifted * (tilt[i] * to_q + g_zy);
        const real g_z = cap[i] * (tilt[i] * tilt[i] * to_q + g_time / z_time);
        const int capped = square[i] > most;
        const real along = (g_g * gz[i] + g_v * zv[i] + g_z * square[i]) / (capped ? square[i] : 1);
        to_g[i] = cap[i] * g_g;
        to_v[i] = cap[i] * g_v;
        to_z[i] = cap[i] * (g_z - (capped ? along : 0));
        /* gY = τ g + y_v V + y_z Z, and V enters Y through its length too */
        const real y_v = lifted * (to_q + g_tilt / time[i]), y_z = to_q * r + g_zy * cap[i];
        const real length = 2 * factor_by[i] * (tau * gv[i] + y_v * vv[i] + y_z * zv[i]);
        v_by_g[i] = lifted * tau;
        v_by_v[i] = lifted * y_v + length;
        v_by_z[i] = lifted * y_z;
    }
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict v = j->skip + from + k * j->pixels, *restrict zk = z + k * stride;
        real *restrict gk = g + k * stride, *restrict out = j->g_skip + from + k * j->pixels;
        EACH for (int i = 0; i < size; i++) {
            const real gi = gk[i], vi = v[i], zi = zk[i];
            out[i] = v_by_g[i] * gi + v_by_v[i] * vi + v_by_z[i] * zi;
            gk[i] = to_g[i] * gi + to_v[i] * vi + to_z[i] * zi;
        }
    }
}

/* From the gradient in V (g [K, block]) to those in P, s², shift and steepness; sums [2K]. */
static void unprojected_backward(const Job *j, const Block *at, const real *restrict by_a,
                                 const real *restrict by_steepness, const real *restrict g, double *restrict sums)
{
    const int size = at->size;
    const int64_t stride = j->block;
    const real *restrict kept = pixels(j, at);
    const real *restrict slope = kept + SLOPE * stride, *restrict level = kept + LEVEL * stride;
    const real *restrict slope_by = kept + SLOPE_BY * stride, *restrict level_by = kept + LEVEL_BY * stride;
    Row g_slope, g_level;
    EACH for (int i = 0; i < size; i++) g_slope[i] = g_level[i] = 0;
    for (int64_t k = 0; k < j->channels; k++) {
        const int64_t to = place(j, at) + k * j->pixels;
        const real *restrict p = j->products + to, *restrict gk = g + k * stride;
        const real *restrict by_ak = by_a + k * stride, *restrict by_sk = by_steepness + k * stride;
        real *restrict out = j->g_products + to;
        const real shift = j->shift[k];
        real g_shift = 0, g_steepness = 0;
        EACH_SUM(omp simd reduction(+ : g_shift, g_steepness)) for (int i = 0; i < size; i++) {
            const real ga = gk[i] * by_ak[i];
            g_steepness += gk[i] * by_sk[i];
            g_shift -= level[i] * ga;
            g_slope[i] += ga * p[i];
            g_level[i] -= ga * shift;
            out[i] = slope[i] * ga;
        }
        sums[k] += (double)g_shift;
        sums[j->channels + k] += (double)g_steepness;
    }
    real *restrict out = j->g_field + at->image * j->pixels + at->start;
    EACH for (int i = 0; i < size; i++) out[i] = g_slope[i] * slope_by[i] + g_level[i] * level_by[i];
}

/* ---- passes without a norm ------------------------------------------------------------------------------------ */

static int forward(const Job *j, int64_t first, int64_t last)
{
    Row slope, level, slope_by, level_by, cap, square;
    for (int64_t n = first; n < last; n++)
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            real *points = j->points + scratch(j, &at);
            slopes(j, &at, slope, level, slope_by, level_by);
            unprojected(j, &at, slope, level, points, 0, 0, cap, square);
            finish(j, &at, points, square);
        }
    return 0;
}

/* sums: shift [K], steepness [K]. */
static int backward(const Job *j, int64_t first, int64_t last)
{
    Row cap, square;
    for (int64_t n = first; n < last; n++) {
        double *sums = j->sums + n * 2 * j->channels;
        memset(sums, 0, (size_t)(2 * j->channels) * sizeof(double));
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            const int64_t from = scratch(j, &at), row = j->block;
            real *kept = pixels(j, &at);
            slopes(j, &at, kept + SLOPE * row, kept + LEVEL * row, kept + SLOPE_BY * row, kept + LEVEL_BY * row);
            unprojected(j, &at, kept + SLOPE * row, kept + LEVEL * row, j->points + from, j->by_a + from,
                        j->by_steepness + from, cap, square);
            finish_backward(j, &at, j->points + from, square, j->grads + from);
            unprojected_backward(j, &at, j->by_a + from, j->by_steepness + from, j->grads + from, sums);
        }
    }
    return 0;
}

/* ---- passes with a norm --------------------------------------------------------------------------------------- */

/* W → points. sums: W [K], x. */
static int forward_points(const Job *j, int64_t first, int64_t last)
{
    Row slope, level, slope_by, level_by, cap, square;
    for (int64_t n = first; n < last; n++) {
        double *sums = j->sums + n * (j->channels + 1);
        memset(sums, 0, (size_t)(j->channels + 1) * sizeof(double));
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            real *restrict points = j->points + scratch(j, &at);
            slopes(j, &at, slope, level, slope_by, level_by);
            const int capped = unprojected(j, &at, slope, level, points, 0, 0, cap, square);
            for (int64_t c = 0; c < j->channels; c++) {
                real *restrict row = points + c * j->block;
                if (capped) {
                    EACH for (int i = 0; i < at.size; i++) row[i] *= cap[i];
                }
                sums[c] += (double)total(row, at.size);
            }
            EACH for (int i = 0; i < at.size; i++) square[i] = excess(cap[i] * cap[i] * square[i]);
            sums[j->channels] += (double)total(square, at.size);
        }
    }
    return 0;
}

/* Inner products of a block's vectors [K, block]: with themselves and with one or two vectors [K]. */
static void products_with(const Job *j, const Block *at, const real *restrict w, const real *restrict y,
                          const real *restrict z, real *restrict ww, real *restrict wy, real *restrict wz)
{
    EACH for (int i = 0; i < at->size; i++) ww[i] = wy[i] = wz[i] = 0;
    for (int64_t k = 0; k < j->channels; k++) {
        const real *restrict wk = w + k * j->block;
        const real yk = y[k], zk = z[k];
        EACH for (int i = 0; i < at->size; i++) {
            ww[i] += wk[i] * wk[i];
            wy[i] += wk[i] * yk;
            wz[i] += wk[i] * zk;
        }
    }
}

/* One Newton step's sums at j->mean: force [K], d coth d, Σ radial · seen seenᵀ [K, K]. */
int newton(const Job *j, int64_t first, int64_t last)
{
    const int64_t channels = j->channels, count = channels + 1 + channels * channels;
    const real m = (real)j->m, by_m = 1 / (2 + m);
    real *seen = aligned_alloc(64, (size_t)(channels * j->block) * sizeof(real));
    if (!seen) return 1;
    Row square, product, unused, pull, along, radial, weighted;
    for (int64_t n = first; n < last; n++) {
        double *sums = j->sums + n * count, *hessian = sums + channels + 1;
        memset(sums, 0, (size_t)count * sizeof(double));
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            const real *points = j->points + scratch(j, &at);
            products_with(j, &at, points, j->mean, j->mean, square, product, unused);
            EACH for (int i = 0; i < at.size; i++) {
                const real x = excess(square[i]), gap = x + m + x * m - product[i], g = gap < 0 ? 0 : gap;
                const real sinh2 = g * (2 + g);
                pull[i] = asinhc(sinh2, g);
                along[i] = pull[i] * (1 + g);
                const real far = sinh2 < SINGULAR ? SINGULAR : sinh2;
                radial[i] = sinh2 > SINGULAR ? (1 - along[i]) / far : R(-1. / 3);
                product[i] = (2 + x + g) * by_m;
            }
            sums[channels] += (double)total(along, at.size);
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict w = points + c * j->block, mean = j->mean[c];
                real *restrict s = seen + c * j->block, force = 0;
                EACH_SUM(omp simd reduction(+ : force)) for (int i = 0; i < at.size; i++) {
                    s[i] = w[i] - mean * product[i];
                    force += pull[i] * s[i];
                }
                sums[c] += (double)force;
            }
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict s = seen + c * j->block;
                EACH for (int i = 0; i < at.size; i++) weighted[i] = radial[i] * s[i];
                for (int64_t d = 0; d <= c; d++) {
                    const real *restrict other = seen + d * j->block;
                    real sum = 0;
                    EACH_SUM(omp simd reduction(+ : sum)) for (int i = 0; i < at.size; i++)
                        sum += weighted[i] * other[i];
                    hessian[c * channels + d] += (double)sum;
                }
            }
        }
        for (int64_t c = 0; c < channels; c++)
            for (int64_t d = 0; d < c; d++) hessian[d * channels + c] = hessian[c * channels + d];
    }
    free(seen);
    return 0;
}

/* sums: d². */
int forward_spread(const Job *j, int64_t first, int64_t last)
{
    const real m = (real)j->m, b = (real)j->b;
    Row square, with_mean, with_bias, distance2;
    for (int64_t n = first; n < last; n++) {
        double sum = 0;
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            real *restrict gap = pixels(j, &at) + GAP * j->block, *restrict pull = pixels(j, &at) + PULL * j->block;
            real *restrict other = pixels(j, &at) + TIME * j->block;
            products_with(j, &at, j->points + scratch(j, &at), j->mean, j->bias, square, with_mean, with_bias);
            EACH for (int i = 0; i < at.size; i++) {
                const real x = excess(square[i]), e = x + m + x * m - with_mean[i], h = x + b + x * b - with_bias[i];
                const real g = e < 0 ? 0 : e, sinh2 = g * (2 + g), ratio = asinhc(sinh2, g);
                gap[i] = g;
                other[i] = h < 0 ? 0 : h;
                pull[i] = ratio;
                distance2[i] = sinh2 * ratio * ratio;
            }
            sum += (double)total(distance2, at.size);
        }
        j->sums[n] = sum;
    }
    return 0;
}

/* Points → tangents; the points are overwritten. */
int forward_moved(const Job *j, int64_t first, int64_t last)
{
    const real f = (real)j->f, gain = (real)j->gain, root = SQRT(gain), by_f = 1 / (2 + f);
    Row stretch, to_mean, to_bias, square;
    for (int64_t n = first; n < last; n++)
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            const real *restrict kept = pixels(j, &at), *restrict gap = kept + GAP * j->block;
            const real *restrict pull = kept + PULL * j->block, *restrict other = kept + TIME * j->block;
            real *restrict points = j->points + scratch(j, &at);
            EACH for (int i = 0; i < at.size; i++) {
                const real e = gap[i], h = other[i], ratio = pull[i], d2 = gain * (e * (2 + e) * ratio * ratio);
                const real scaled = d2 > LARGEST_ANGLE * LARGEST_ANGLE ? LARGEST_ANGLE * LARGEST_ANGLE : d2;
                real shrink, cosh;
                sinhc(scaled, &shrink, &cosh);
                const real s = root * shrink * ratio;
                stretch[i] = s;
                to_mean[i] = -by_f * s * (2 + e + h);
                to_bias[i] = by_f * s * (e + f + e * f - h) + cosh;
                square[i] = 0;
            }
            for (int64_t c = 0; c < j->channels; c++) {
                real *restrict row = points + c * j->block;
                const real mean = j->mean[c], bias = j->bias[c];
                EACH for (int i = 0; i < at.size; i++) {
                    const real z = stretch[i] * row[i] + to_mean[i] * mean + to_bias[i] * bias;
                    row[i] = z;
                    square[i] += z * z;
                }
            }
            finish(j, &at, points, square);
        }
    return 0;
}

/* Up to all that is known without sums over the batch: grads hold the gradient in W but for what comes through variance
 * and mean. sums: M [K], d²/2 by M [K], B [K], then gain, f, m, d²/2 by m, b: with 1 + x for W. */
int backward_moved(const Job *j, int64_t first, int64_t last)
{
    const int64_t channels = j->channels, count = 3 * channels + 5;
    const real m = (real)j->m, b = (real)j->b, f = (real)j->f, gain = (real)j->gain, root = SQRT(gain);
    const real by_f = 1 / (2 + f), by_root = 1 / (2 * gain);
    real *z = aligned_alloc(64, (size_t)(channels * j->block) * sizeof(real));
    if (!z) return 1;
    Row square, with_mean, with_bias, e, h, shrink_by, cosh, shrink, stretch, to_mean, to_bias, z2;
    Row gw, gm, gb, ge, gh, cw, g_gain, g_f;
    for (int64_t n = first; n < last; n++) {
        double *sums = j->sums + n * count, *scalars = sums + 3 * channels;
        memset(sums, 0, (size_t)count * sizeof(double));
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            const int64_t from = scratch(j, &at), row = j->block;
            const int size = at.size;
            real *restrict kept = pixels(j, &at), *restrict cap = kept + CAP * row, *restrict time = kept + TIME * row;
            real *restrict pull = kept + PULL * row;
            real *restrict v = j->points + from, *restrict g = j->grads + from;
            slopes(j, &at, kept + SLOPE * row, kept + LEVEL * row, kept + SLOPE_BY * row, kept + LEVEL_BY * row);
            unprojected(j, &at, kept + SLOPE * row, kept + LEVEL * row, v, j->by_a + from, j->by_steepness + from, cap,
                        square);
            products_with(j, &at, v, j->mean, j->bias, square, with_mean, with_bias);
            EACH for (int i = 0; i < size; i++) {
                const real x = excess(cap[i] * cap[i] * square[i]);
                time[i] = 1 + x;
                e[i] = x + m + x * m - cap[i] * with_mean[i];
                h[i] = x + b + x * b - cap[i] * with_bias[i];
                const real gap = e[i] < 0 ? 0 : e[i], other = h[i] < 0 ? 0 : h[i];
                const real sinh2 = gap * (2 + gap), ratio = asinhc(sinh2, gap), d2 = gain * (sinh2 * ratio * ratio);
                const real scaled = d2 > LARGEST_ANGLE * LARGEST_ANGLE ? LARGEST_ANGLE * LARGEST_ANGLE : d2;
                pull[i] = ratio;
                sinhc(scaled, shrink + i, cosh + i);
                shrink_by[i] = sinhc_by(scaled, shrink[i], cosh[i]);
                stretch[i] = root * shrink[i] * ratio;
                to_mean[i] = -by_f * stretch[i] * (2 + gap + other);
                to_bias[i] = by_f * stretch[i] * (gap + f + gap * f - other) + cosh[i];
                z2[i] = gw[i] = gm[i] = gb[i] = 0;
            }
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict vc = v + c * row, mean = j->mean[c], bias = j->bias[c];
                real *restrict zc = z + c * row;
                EACH for (int i = 0; i < size; i++) {
                    zc[i] = stretch[i] * cap[i] * vc[i] + to_mean[i] * mean + to_bias[i] * bias;
                    z2[i] += zc[i] * zc[i];
                }
            }
            finish_backward(j, &at, z, z2, g);
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict vc = v + c * row, *restrict gc = g + c * row, mean = j->mean[c], bias = j->bias[c];
                EACH for (int i = 0; i < size; i++) {
                    gw[i] += gc[i] * vc[i];
                    gm[i] += gc[i] * mean;
                    gb[i] += gc[i] * bias;
                }
            }
            EACH for (int i = 0; i < size; i++) {
                const real gap = e[i] < 0 ? 0 : e[i], other = h[i] < 0 ? 0 : h[i], ratio = pull[i], s = stretch[i];
                const real sinh2 = gap * (2 + gap), d2 = sinh2 * ratio * ratio;
                const real near = 2 + gap + other;
                const real g_stretch =
                    cap[i] * gw[i] - gm[i] * near * by_f + gb[i] * (gap + f + gap * f - other) * by_f;
                const int inside = !(gain * d2 > LARGEST_ANGLE * LARGEST_ANGLE);
                const real shrink_by_d2 = inside ? shrink_by[i] : 0, cosh_by_d2 = inside ? R(0.5) * shrink[i] : 0;
                /* of γ²d², through sinh(γd)/(γd) and cosh γd; ∂d²/∂e = 2 d/sinh d */
                const real g_scaled = g_stretch * root * ratio * shrink_by_d2 + gb[i] * cosh_by_d2;
                const real g_ratio = g_stretch * root * shrink[i];
                const real g_e = (gb[i] * (1 + f) - gm[i]) * s * by_f + g_scaled * gain * 2 * ratio +
                                 g_ratio * asinhc_by(sinh2, gap, ratio) * 2 * (1 + gap);
                const real g_h = -(gm[i] + gb[i]) * s * by_f;
                g_gain[i] = g_scaled * d2 + g_ratio * ratio * by_root;
                g_f[i] = s * near * by_f * by_f * (gm[i] + gb[i]);
                ge[i] = e[i] < 0 ? 0 : g_e;
                gh[i] = h[i] < 0 ? 0 : g_h;
                pull[i] = e[i] < 0 ? 0 : ratio;
                cw[i] = cap[i] * (ge[i] * (1 + m) + gh[i] * (1 + b)) / time[i];
            }
            scalars[0] += (double)total(g_gain, size);
            scalars[1] += (double)total(g_f, size);
            real to_m = 0, pull_m = 0, to_b = 0;
            EACH_SUM(omp simd reduction(+ : to_m, pull_m, to_b)) for (int i = 0; i < size; i++) {
                to_m += ge[i] * time[i];
                pull_m += pull[i] * time[i];
                to_b += gh[i] * time[i];
            }
            scalars[2] += (double)to_m;
            scalars[3] += (double)pull_m;
            scalars[4] += (double)to_b;
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict vc = v + c * row, mean = j->mean[c], bias = j->bias[c];
                real *restrict gc = g + c * row, by_mean = 0, by_pull = 0, by_bias = 0;
                EACH_SUM(omp simd reduction(+ : by_mean, by_pull, by_bias)) for (int i = 0; i < size; i++) {
                    const real w = cap[i] * vc[i], gz = gc[i];
                    by_mean += to_mean[i] * gz - ge[i] * w;
                    by_pull -= pull[i] * w;
                    by_bias += to_bias[i] * gz - gh[i] * w;
                    gc[i] = stretch[i] * gz + cw[i] * vc[i] - ge[i] * mean - gh[i] * bias;
                }
                sums[c] += (double)by_mean;
                sums[channels + c] += (double)by_pull;
                sums[2 * channels + c] += (double)by_bias;
            }
        }
    }
    free(z);
    return 0;
}

/* The rest: what comes through variance and mean, and on to P. sums: shift [K], steepness [K]. */
static int backward_points(const Job *j, int64_t first, int64_t last)
{
    const int64_t channels = j->channels;
    const real m = (real)j->m, to_gap = (real)(2 * j->g_distance2), g_time = (real)j->g_time;
    const real old_m = (real)j->old_m, pull_mean = (real)j->pull_mean, by_m = 1 / (2 + old_m);
    const real limit = (real)sinh(2 * j->limit), most = limit * limit;
    Row by_w, by_mean, by_pull, by_old, square, with_old, with_pull, inner;
    for (int64_t n = first; n < last; n++) {
        double *sums = j->sums + n * 2 * channels;
        memset(sums, 0, (size_t)(2 * channels) * sizeof(double));
        for (int64_t k = 0; k < j->blocks; k++) {
            const Block at = block_of(j, n, k);
            const int64_t from = scratch(j, &at), row = j->block;
            const int size = at.size;
            const real *restrict kept = pixels(j, &at), *restrict cap = kept + CAP * row;
            const real *restrict time = kept + TIME * row, *restrict pull = kept + PULL * row;
            const real *restrict v = j->points + from;
            real *restrict g = j->grads + from;
            int capped = 0;
            EACH_SUM(omp simd reduction(| : capped)) for (int i = 0; i < size; i++) {
                by_w[i] = cap[i] * (to_gap * pull[i] * (1 + m) + g_time) / time[i];
                by_mean[i] = -to_gap * pull[i];
                capped |= cap[i] < 1;
            }
            if (j->frechet) {
                products_with(j, &at, v, j->old_mean, j->pull, square, with_old, with_pull);
                EACH for (int i = 0; i < size; i++) {
                    const real x = time[i] - 1, raw = x + old_m + x * old_m - cap[i] * with_old[i];
                    const real gap = raw < 0 ? 0 : raw, sinh2 = gap * (2 + gap), ratio = asinhc(sinh2, gap);
                    const real pulled = cap[i] * with_pull[i] - pull_mean * (2 + x + gap) * by_m;
                    const real g_x = -ratio * pull_mean * by_m;
                    const real g_gap = g_x + pulled * asinhc_by(sinh2, gap, ratio) * 2 * (1 + gap);
                    const real held = raw < 0 ? 0 : g_gap;
                    by_pull[i] = ratio;
                    by_old[i] = -held;
                    by_w[i] += cap[i] * (g_x + held * (1 + old_m)) / time[i];
                }
                for (int64_t c = 0; c < channels; c++) {
                    const real pulling = j->pull[c], old = j->old_mean[c];
                    real *restrict gc = g + c * row;
                    EACH for (int i = 0; i < size; i++) gc[i] += by_pull[i] * pulling + by_old[i] * old;
                }
            }
            for (int64_t c = 0; c < channels; c++) {
                const real *restrict vc = v + c * row, mean = j->mean[c], to_mean = j->g_mean[c];
                real *restrict gc = g + c * row;
                EACH for (int i = 0; i < size; i++) gc[i] += by_w[i] * vc[i] + by_mean[i] * mean + to_mean;
            }
            if (capped) {
                EACH for (int i = 0; i < size; i++) square[i] = inner[i] = 0;
                for (int64_t c = 0; c < channels; c++) {
                    const real *restrict vc = v + c * row, *restrict gc = g + c * row;
                    EACH for (int i = 0; i < size; i++) {
                        square[i] += vc[i] * vc[i];
                        inner[i] += vc[i] * gc[i];
                    }
                }
                EACH for (int i = 0; i < size; i++)
                    inner[i] = square[i] > most ? inner[i] / (square[i] > most ? square[i] : 1) : 0;
                for (int64_t c = 0; c < channels; c++) {
                    const real *restrict vc = v + c * row;
                    real *restrict gc = g + c * row;
                    EACH for (int i = 0; i < size; i++) gc[i] = cap[i] * (gc[i] - inner[i] * vc[i]);
                }
            }
            unprojected_backward(j, &at, j->by_a + from, j->by_steepness + from, g, sums);
        }
    }
    return 0;
}

/* ---- convolutions --------------------------------------------------------------------------------------------- */

/* A padded image is laid out flat, rows one after the other, so that a tap of the kernel is an offset and every loop
 * runs over a whole image, whatever its width; the few columns between rows are worked out too and left out. With a
 * stride, pixels of one remainder lie together, so that a tap's pixels are neighbours again. */

#ifdef __AVX512F__
#define BYTES 64
#define TAPS 6 /* accumulators of a weight's gradient: FILTERS × TAPS */
#define WIDE 4 /* accumulators of a convolution: FILTERS × WIDE */
#elif defined(__AVX__)
#define BYTES 32
#define TAPS 2
#define WIDE 2
#else
#define BYTES 16
#define TAPS 2
#define WIDE 2
#endif
#define FILTERS 4
#define LANES ((int64_t)(BYTES / sizeof(real)))
typedef real Vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

typedef struct {
    int64_t channels, height, width, filters, out_height, out_width, kernel[2], stride[2], padding[2];
    int64_t images, together;         /* N; images whose gradients in the weight are summed before they are written */
    double scale;                     /* ρ² */
    const real *u, *weight;           /* [N, C, H, W], ρ · weight [K, C, h, w] */
    const real *g_products, *g_field; /* [N, K, H′, W′], [N, 1, H′, W′] */
    real *products, *field;           /* [N, K, H′, W′], [N, 1, H′, W′] */
    real *g_u, *g_weight;             /* [N, C, H, W], [⌈N / together⌉, K, C, h, w] */
} Window;

/* Keeps what was loaded once in its register: compilers load it anew for each of its uses. */
#if defined(__x86_64__)
#define KEEP(vector) __asm__("" : "+v"(vector))
#elif defined(__aarch64__)
#define KEEP(vector) __asm__("" : "+w"(vector))
#else
#define KEEP(vector)
#endif

static inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline Vector load(const real *x) { return *(const Vector *)x; }

/* FILTERS rows of `out`, `wide` vectors of each, of `correlate`. */
static inline __attribute__((always_inline)) void correlate_block(const real *from, const real *weight,
                                                                  const int64_t *offset, int64_t taps, int wide,
                                                                  int64_t length, real *out)
{
    Vector sum[FILTERS][WIDE] = {0};
    for (int64_t t = 0; t < taps; t++) {
        const real *x = from + offset[t], *wt = weight + t * FILTERS;
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) {
            Vector value = load(x + v * LANES);
            KEEP(value);
#pragma GCC unroll 4
            for (int f = 0; f < FILTERS; f++) sum[f][v] += wt[f] * value;
        }
    }
#pragma GCC unroll 4
    for (int f = 0; f < FILTERS; f++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) *(Vector *)(out + f * length + v * LANES) = sum[f][v];
}

/* out [groups · FILTERS, length] = Σ_t weight[group, t, filter] · from[offset[t] + i]; length a multiple of LANES. */
static void correlate(const real *from, const real *weight, const int64_t *offset, int64_t taps, int64_t groups,
                      int64_t length, real *out)
{
    for (int64_t k = 0; k < groups; k++) {
        const real *w = weight + k * taps * FILTERS;
        real *to = out + k * FILTERS * length;
        int64_t left = length / LANES;
        while (left > 0) {
            const real *x = from + (length - left * LANES);
            real *at = to + (length - left * LANES);
            const int64_t wide = left < WIDE ? left : WIDE;
            if (wide == WIDE) correlate_block(x, w, offset, taps, WIDE, length, at);
            else if (wide == 3) correlate_block(x, w, offset, taps, 3, length, at);
            else if (wide == 2) correlate_block(x, w, offset, taps, 2, length, at);
            else correlate_block(x, w, offset, taps, 1, length, at);
            left -= wide;
        }
    }
}

/* out [filters, taps] = Σ_i grad[filter, i] · from[offset[tap] + i] over `images` of both; `offset` has room for TAPS
 * more than `taps`, `filters` a multiple of FILTERS. */
static void correlate_weight(const real *from, int64_t from_size, const real *grad, int64_t images,
                             const int64_t *offset, int64_t taps, int64_t filters, int64_t length, real *out)
{
    for (int64_t k = 0; k < filters; k += FILTERS)
        for (int64_t t = 0; t < taps; t += TAPS) {
            Vector sum[FILTERS][TAPS] = {0};
            for (int64_t n = 0; n < images; n++) {
                const real *g = grad + (n * filters + k) * length, *x = from + n * from_size;
                for (int64_t i = 0; i < length; i += LANES) {
                    Vector value[FILTERS];
#pragma GCC unroll 4
                    for (int f = 0; f < FILTERS; f++) value[f] = load(g + f * length + i);
#pragma GCC unroll 6
                    for (int s = 0; s < TAPS; s++) {
                        Vector seen = load(x + offset[t + s] + i);
                        KEEP(seen);
#pragma GCC unroll 4
                        for (int f = 0; f < FILTERS; f++) sum[f][s] += value[f] * seen;
                    }
                }
            }
            for (int f = 0; f < FILTERS; f++)
                for (int s = 0; s < TAPS && t + s < taps; s++) {
                    real total = 0;
                    for (int l = 0; l < LANES; l++) total += sum[f][s][l];
                    out[(k + f) * taps + t + s] = total;
                }
        }
}

/* How a padded image lies: [channels, stride, stride, rows, wide], `size` numbers, of which a pass reads `length` from
 * every offset. */
typedef struct {
    int64_t rows, wide, size, length;
} Flat;

static Flat flat_of(const Window *w)
{
    const int64_t rows = up(w->height + 2 * w->padding[0], w->stride[0]);
    const int64_t wide = up(w->width + 2 * w->padding[1], w->stride[1]);
    const int64_t length = up((w->out_height - 1) * wide + w->out_width, LANES) * LANES;
    /* the last offset is below size, so that `length` more are room enough */
    return (Flat){rows, wide, w->channels * w->stride[0] * w->stride[1] * rows * wide + length, length};
}

static void flat_offsets(const Window *w, Flat flat, int64_t *offset)
{
    for (int64_t c = 0; c < w->channels; c++)
        for (int64_t y = 0; y < w->kernel[0]; y++)
            for (int64_t x = 0; x < w->kernel[1]; x++) {
                const int64_t plane = (c * w->stride[0] + y % w->stride[0]) * w->stride[1] + x % w->stride[1];
                *offset++ = (plane * flat.rows + y / w->stride[0]) * flat.wide + x / w->stride[1];
            }
}

/* An image of u into its flat form, whose padding is 0 already. */
static void flatten(const Window *w, Flat flat, const real *u, real *restrict to)
{
    const int64_t down = w->stride[0], across = w->stride[1];
    for (int64_t c = 0; c < w->channels; c++)
        for (int64_t y = 0; y < w->height; y++) {
            const real *restrict from = u + (c * w->height + y) * w->width;
            const int64_t high = y + w->padding[0];
            if (high % down >= w->kernel[0]) continue;
            for (int64_t part = 0; part < across && part < w->kernel[1]; part++) {
                const int64_t first = (part + across - w->padding[1] % across) % across;
                const int64_t plane = (c * down + high % down) * across + part;
                real *restrict row =
                    to + (plane * flat.rows + high / down) * flat.wide + (first + w->padding[1]) / across;
                const int64_t count = up(w->width - first, across);
                if (across == 1)
                    EACH for (int64_t x = 0; x < count; x++) row[x] = from[x];
                else
                    EACH for (int64_t x = 0; x < count; x++) row[x] = from[first + x * across];
            }
        }
}

static inline void copy_rows(const real *restrict from, int64_t from_wide, int64_t rows, int64_t count,
                             real *restrict to, int64_t to_wide)
{
    for (int64_t y = 0; y < rows; y++)
        EACH for (int64_t x = 0; x < count; x++) to[y * to_wide + x] = from[y * from_wide + x];
}

/* P = conv(u, weight). */
static int convolution(const Window *w, int64_t first, int64_t last)
{
    const Flat flat = flat_of(w);
    const int64_t taps = w->channels * w->kernel[0] * w->kernel[1], groups = up(w->filters, FILTERS);
    real *from = calloc((size_t)flat.size, sizeof(real));
    real *weight = calloc((size_t)(groups * FILTERS * taps), sizeof(real));
    real *out = malloc((size_t)(groups * FILTERS * flat.length) * sizeof(real));
    int64_t *offset = malloc((size_t)taps * sizeof(int64_t));
    const int failed = !from || !weight || !out || !offset;
    if (!failed) {
        flat_offsets(w, flat, offset);
        for (int64_t k = 0; k < w->filters; k++)
            for (int64_t t = 0; t < taps; t++)
                weight[(k / FILTERS * taps + t) * FILTERS + k % FILTERS] = w->weight[k * taps + t];
        for (int64_t n = first; n < last; n++) {
            flatten(w, flat, w->u + n * w->channels * w->height * w->width, from);
            correlate(from, weight, offset, taps, groups, flat.length, out);
            for (int64_t k = 0; k < w->filters; k++)
                copy_rows(out + k * flat.length, flat.wide, w->out_height, w->out_width,
                          w->products + (n * w->filters + k) * w->out_height * w->out_width, w->out_width);
        }
    }
    free(from);
    free(weight);
    free(out);
    free(offset);
    return failed;
}

/* The gradient in u: per remainder of a pixel by the stride a convolution with the taps that reach such pixels. */
static int convolution_by_u(const Window *w, int64_t first, int64_t last)
{
    const int64_t *stride = w->stride, *kernel = w->kernel, *padding = w->padding;
    const int64_t back[2] = {(kernel[0] - 1) / stride[0], (kernel[1] - 1) / stride[1]};
    const int64_t high = (w->height - 1 + padding[0]) / stride[0] + 1; /* of the rows y′ = (y + padding) / stride */
    const int64_t across = (w->width - 1 + padding[1]) / stride[1] + 1;
    const int64_t tall = high > w->out_height ? high : w->out_height;
    const int64_t broad = across > w->out_width ? across : w->out_width;
    const int64_t rows = tall + back[0], wide = broad + back[1];
    const int64_t length = up((high - 1) * wide + across, LANES) * LANES, size = w->filters * rows * wide + length;
    const int64_t most = w->filters * (back[0] + 1) * (back[1] + 1), groups = up(w->channels, FILTERS);
    real *from = calloc((size_t)size, sizeof(real));
    real *weight = malloc((size_t)(groups * FILTERS * most) * sizeof(real));
    real *out = malloc((size_t)(groups * FILTERS * length) * sizeof(real));
    int64_t *offset = malloc((size_t)most * sizeof(int64_t));
    const int failed = !from || !weight || !out || !offset;
    for (int64_t part = 0; !failed && part < stride[0] * stride[1]; part++) {
        const int64_t py = part / stride[1], px = part % stride[1];
        int64_t taps = 0;
        memset(weight, 0, (size_t)(groups * FILTERS * most) * sizeof(real));
        const int64_t each = (py < kernel[0] ? up(kernel[0] - py, stride[0]) : 0) *
                             (px < kernel[1] ? up(kernel[1] - px, stride[1]) : 0) * w->filters;
        for (int64_t k = 0; k < w->filters; k++)
            for (int64_t y = py; y < kernel[0]; y += stride[0])
                for (int64_t x = px; x < kernel[1]; x += stride[1]) {
                    for (int64_t c = 0; c < w->channels; c++)
                        weight[(c / FILTERS * each + taps) * FILTERS + c % FILTERS] =
                            w->weight[((k * w->channels + c) * kernel[0] + y) * kernel[1] + x];
                    offset[taps++] = (k * rows + back[0] - y / stride[0]) * wide + back[1] - x / stride[1];
                }
        for (int64_t n = first; n < last; n++) {
            for (int64_t k = 0; k < w->filters; k++)
                copy_rows(w->g_products + (n * w->filters + k) * w->out_height * w->out_width, w->out_width,
                          w->out_height, w->out_width, from + (k * rows + back[0]) * wide + back[1], wide);
            correlate(from, weight, offset, taps, groups, length, out);
            const int64_t left = (px + stride[1] - padding[1] % stride[1]) % stride[1];
            for (int64_t c = 0; c < w->channels; c++)
                for (int64_t y = (py + stride[0] - padding[0] % stride[0]) % stride[0]; y < w->height; y += stride[0]) {
                    real *restrict to = w->g_u + ((n * w->channels + c) * w->height + y) * w->width + left;
                    const real *restrict row =
                        out + c * length + (y + padding[0]) / stride[0] * wide + (left + padding[1]) / stride[1];
                    const int64_t count = up(w->width - left, stride[1]);
                    if (stride[1] == 1)
                        EACH for (int64_t x = 0; x < count; x++) to[x] = row[x];
                    else
                        EACH for (int64_t x = 0; x < count; x++) to[x * stride[1]] = row[x];
                }
        }
    }
    free(from);
    free(weight);
    free(out);
    free(offset);
    return failed;
}

/* The gradient in the weight, of `together` images each; first and last count those heaps of images. */
static int convolution_by_weight(const Window *w, int64_t first, int64_t last)
{
    const Flat flat = flat_of(w);
    const int64_t taps = w->channels * w->kernel[0] * w->kernel[1], filters = up(w->filters, FILTERS) * FILTERS;
    real *from = calloc((size_t)(w->together * flat.size), sizeof(real));
    real *grad = calloc((size_t)(w->together * filters * flat.length), sizeof(real));
    real *out = malloc((size_t)(filters * taps) * sizeof(real));
    int64_t *offset = calloc((size_t)(taps + TAPS), sizeof(int64_t));
    const int failed = !from || !grad || !out || !offset;
    if (!failed) {
        flat_offsets(w, flat, offset);
        for (int64_t heap = first; heap < last; heap++) {
            const int64_t start = heap * w->together;
            const int64_t count = w->images - start < w->together ? w->images - start : w->together;
            for (int64_t n = 0; n < count; n++) {
                flatten(w, flat, w->u + (start + n) * w->channels * w->height * w->width, from + n * flat.size);
                for (int64_t k = 0; k < w->filters; k++)
                    copy_rows(w->g_products + ((start + n) * w->filters + k) * w->out_height * w->out_width,
                              w->out_width, w->out_height, w->out_width, grad + (n * filters + k) * flat.length,
                              flat.wide);
            }
            correlate_weight(from, flat.size, grad, count, offset, taps, filters, flat.length, out);
            memcpy(w->g_weight + heap * w->filters * taps, out, (size_t)(w->filters * taps) * sizeof(real));
        }
    }
    free(from);
    free(grad);
    free(out);
    free(offset);
    return failed;
}

/* ---- the field: s² of every receptive field ------------------------------------------------------------------- */

/* field = ρ² box(Σ u²). */
static int forward_field(const Window *w, int64_t first, int64_t last)
{
    const int64_t size = w->height * w->width, wide = w->width + 2 * w->padding[1];
    const int64_t high = w->height + 2 * w->padding[0], across = w->out_width;
    real *plane = calloc((size_t)(high * wide), sizeof(real)), *rows = malloc((size_t)(high * across) * sizeof(real));
    const real scale = (real)w->scale;
    if (plane && rows)
        for (int64_t n = first; n < last; n++) {
            for (int64_t y = 0; y < w->height; y++) {
                real *restrict to = plane + (y + w->padding[0]) * wide + w->padding[1];
                EACH for (int64_t x = 0; x < w->width; x++) to[x] = 0;
                for (int64_t c = 0; c < w->channels; c++) {
                    const real *restrict u = w->u + (n * w->channels + c) * size + y * w->width;
                    EACH for (int64_t x = 0; x < w->width; x++) to[x] += u[x] * u[x];
                }
            }
            for (int64_t y = 0; y < high; y++) {
                const real *restrict from = plane + y * wide;
                real *restrict to = rows + y * across;
                EACH for (int64_t x = 0; x < across; x++) to[x] = 0;
                for (int64_t k = 0; k < w->kernel[1]; k++)
                    EACH for (int64_t x = 0; x < across; x++) to[x] += from[x * w->stride[1] + k];
            }
            for (int64_t y = 0; y < w->out_height; y++) {
                real *restrict to = w->field + (n * w->out_height + y) * across;
                EACH for (int64_t x = 0; x < across; x++) to[x] = 0;
                for (int64_t k = 0; k < w->kernel[0]; k++) {
                    const real *restrict from = rows + (y * w->stride[0] + k) * across;
                    EACH for (int64_t x = 0; x < across; x++) to[x] += from[x];
                }
                EACH for (int64_t x = 0; x < across; x++) to[x] *= scale;
            }
        }
    const int failed = !plane || !rows;
    free(plane);
    free(rows);
    return failed;
}

/* g_u += 2 ρ² u boxᵀ(g_field). */
static int backward_field(const Window *w, int64_t first, int64_t last)
{
    const int64_t size = w->height * w->width, wide = w->width + 2 * w->padding[1];
    const int64_t high = w->height + 2 * w->padding[0], across = w->out_width;
    real *plane = malloc((size_t)(high * wide) * sizeof(real)), *rows = malloc((size_t)(high * across) * sizeof(real));
    const real scale = (real)(2 * w->scale);
    if (plane && rows)
        for (int64_t n = first; n < last; n++) {
            memset(plane, 0, (size_t)(high * wide) * sizeof(real));
            memset(rows, 0, (size_t)(high * across) * sizeof(real));
            for (int64_t y = 0; y < w->out_height; y++) {
                const real *restrict from = w->g_field + (n * w->out_height + y) * across;
                for (int64_t k = 0; k < w->kernel[0]; k++) {
                    real *restrict to = rows + (y * w->stride[0] + k) * across;
                    EACH for (int64_t x = 0; x < across; x++) to[x] += scale * from[x];
                }
            }
            for (int64_t y = 0; y < high; y++) {
                const real *restrict from = rows + y * across;
                real *restrict to = plane + y * wide;
                for (int64_t k = 0; k < w->kernel[1]; k++)
                    EACH for (int64_t x = 0; x < across; x++) to[x * w->stride[1] + k] += from[x];
            }
            for (int64_t c = 0; c < w->channels; c++)
                for (int64_t y = 0; y < w->height; y++) {
                    const int64_t at = (n * w->channels + c) * size + y * w->width;
                    const real *restrict u = w->u + at;
                    const real *restrict from = plane + (y + w->padding[0]) * wide + w->padding[1];
                    real *restrict to = w->g_u + at;
                    EACH for (int64_t x = 0; x < w->width; x++) to[x] += u[x] * from[x];
                }
        }
    const int failed = !plane || !rows;
    free(plane);
    free(rows);
    return failed;
}

/* ---- convolution and points together, heap by heap: what one pass wrote is in the cache of the next ------------ */

static inline int64_t end_of(const Window *w, int64_t heap)
{
    const int64_t end = (heap + 1) * w->together;
    return end < w->images ? end : w->images;
}

/* u → P and s² → with a norm the points and their sums, else the tangents. first and last count heaps. */
int forward_layer(const Job *j, const Window *w, int64_t first, int64_t last)
{
    for (int64_t heap = first; heap < last; heap++) {
        const int64_t start = heap * w->together, end = end_of(w, heap);
        if (convolution(w, start, end) || forward_field(w, start, end)) return 1;
        if (j->normed ? forward_points(j, start, end) : forward(j, start, end)) return 1;
    }
    return 0;
}

/* The gradient in the points (with a norm) or the tangents → those in shift, steepness, weight, u. */
int backward_layer(const Job *j, const Window *w, int64_t first, int64_t last)
{
    for (int64_t heap = first; heap < last; heap++) {
        const int64_t start = heap * w->together, end = end_of(w, heap);
        if (j->normed ? backward_points(j, start, end) : backward(j, start, end)) return 1;
        if (w->g_weight && convolution_by_weight(w, heap, heap + 1)) return 1;
        if (w->g_u && (convolution_by_u(w, start, end) || backward_field(w, start, end))) return 1;
    }
    return 0;
}

/* ---- hyperplanes ------------------------------------------------------------------------------------------------ */

typedef struct {
    int64_t count, size;    /* K, numbers of a z_k */
    double root;            /* √c */
    const real *z, *r;      /* [K, size], [K] or null */
    real *weight, *shift, *steepness;
    const real *g_weight, *g_shift, *g_steepness;
    real *g_z, *g_r;        /* g_r may be null */
    double *g_c;            /* [] or null */
} PlanesJob;

/* Of plane k: ‖z‖, at least SHORTEST_DIRECTION, shift = sinh(2√c r), which is linear from LARGEST_ANGLE on, and its
 * derivative in 2√c r. */
static void plane(const PlanesJob *j, int64_t k, double *norm, double *shift, double *slope)
{
    double square = 0;
    for (int64_t i = 0; i < j->size; i++) square += (double)j->z[k * j->size + i] * (double)j->z[k * j->size + i];
    *norm = square < SHORTEST_DIRECTION * SHORTEST_DIRECTION ? SHORTEST_DIRECTION : sqrt(square);
    const double most = (double)LARGEST_ANGLE, angle = j->r ? 2 * j->root * (double)j->r[k] : 0;
    const int beyond = fabs(angle) > most;
    *shift = beyond ? angle * (sinh(most) / most) : sinh(angle);
    *slope = beyond ? sinh(most) / most : cosh(angle);
}

int planes(const PlanesJob *j)
{
    for (int64_t k = 0; k < j->count; k++) {
        double norm, shift, slope;
        plane(j, k, &norm, &shift, &slope);
        const double scale = sqrt(1 + shift * shift) / norm;
        for (int64_t i = k * j->size; i < (k + 1) * j->size; i++) j->weight[i] = (real)(scale * (double)j->z[i]);
        j->shift[k] = (real)shift;
        j->steepness[k] = (real)(2 * norm);
    }
    return 0;
}

int planes_backward(const PlanesJob *j)
{
    double g_c = 0;
    for (int64_t k = 0; k < j->count; k++) {
        double norm, shift, slope, g_scale = 0;
        plane(j, k, &norm, &shift, &slope);
        const double time = sqrt(1 + shift * shift), inverse = 1 / norm, scale = inverse * time;
        for (int64_t i = k * j->size; i < (k + 1) * j->size; i++) g_scale += (double)j->g_weight[i] * (double)j->z[i];
        const int held = norm == SHORTEST_DIRECTION;
        const double along = held ? 0 : (2 * (double)j->g_steepness[k] - g_scale * scale * inverse) * inverse;
        for (int64_t i = k * j->size; i < (k + 1) * j->size; i++)
            j->g_z[i] = (real)(scale * (double)j->g_weight[i] + along * (double)j->z[i]);
        const double g_angle = ((double)j->g_shift[k] + g_scale * inverse * shift / time) * slope;
        if (j->g_r) j->g_r[k] = (real)(2 * j->root * g_angle);
        if (j->r) g_c += g_angle * (double)j->r[k] / j->root;
    }
    if (j->g_c) *j->g_c = g_c;
    return 0;
}

/* ---- Möbius sum of rows ----------------------------------------------------------------------------------------- */

#define ROWS 256 /* that are worked on together (ROWS of _native.py) */

typedef struct {
    int64_t rows, size;     /* vectors, numbers of one */
    double limit;
    const real *branch, *skip, *grad; /* [rows, size] */
    real *out, *g_branch, *g_skip;
} SumJob;

typedef real Of[ROWS] __attribute__((aligned(64)));

static void row_products(const real *x, const real *y, int64_t size, int count, real *product)
{
    for (int r = 0; r < count; r++) {
        real total = 0;
        EACH_SUM(omp simd reduction(+ : total))
        for (int64_t i = r * size; i < (r + 1) * size; i++) total += x[i] * y[i];
        product[r] = total;
    }
}

/* out = alpha · t + delta · v with lorentz.residual's names: a, b are the factors of exp₀, z, y, x the excesses of the
 * summands and of the sum. */
int row_residual(const SumJob *j, int64_t first, int64_t last)
{
    const real limit = (real)j->limit;
    for (int64_t start = first * ROWS; start < j->rows && start < last * ROWS; start += ROWS) {
        const int count = (int)(j->rows - start < ROWS ? j->rows - start : ROWS);
        const real *t = j->branch + start * j->size, *v = j->skip + start * j->size;
        real *out = j->out + start * j->size;
        Of tt, vv, tv, alpha, delta;
        row_products(t, t, j->size, count, tt);
        row_products(v, v, j->size, count, vv);
        row_products(t, v, j->size, count, tv);
        EACH
        for (int r = 0; r < count; r++) {
            real a, b, by, time;
            lift(tt[r], limit, &a, &by, &time);
            lift(vv[r], limit, &b, &by, &time);
            const real z = excess(a * a * tt[r]), y = excess(b * b * vv[r]);
            const real x = z + y + z * y + a * b * tv[r], square = x * (2 + x), held = square < 0 ? 0 : square;
            const real scale = R(0.5) * asinhc(held, excess(held));
            alpha[r] = scale * a * (2 + y + x) / (2 + z);
            delta[r] = scale * b;
        }
        for (int r = 0; r < count; r++) {
            EACH
            for (int64_t i = r * j->size; i < (r + 1) * j->size; i++) out[i] = alpha[r] * t[i] + delta[r] * v[i];
        }
    }
    return 0;
}

int row_residual_backward(const SumJob *j, int64_t first, int64_t last)
{
    const real limit = (real)j->limit, most = limit * limit;
    for (int64_t start = first * ROWS; start < j->rows && start < last * ROWS; start += ROWS) {
        const int count = (int)(j->rows - start < ROWS ? j->rows - start : ROWS);
        const int64_t at = start * j->size;
        const real *t = j->branch + at, *v = j->skip + at, *grad = j->grad + at;
        real *g_t = j->g_branch + at, *g_v = j->g_skip + at;
        Of tt, vv, tv, alpha, delta;
        row_products(t, t, j->size, count, tt);
        row_products(v, v, j->size, count, vv);
        row_products(t, v, j->size, count, tv);
        row_products(grad, t, j->size, count, alpha); /* gradients in alpha and delta, at first */
        row_products(grad, v, j->size, count, delta);
        EACH
        for (int r = 0; r < count; r++) {
            real a, b, a_by, b_by, time;
            lift(tt[r], limit, &a, &a_by, &time);
            lift(vv[r], limit, &b, &b_by, &time);
            const real z = excess(a * a * tt[r]), y = excess(b * b * vv[r]);
            const real x = z + y + z * y + a * b * tv[r], square = x * (2 + x), held = square < 0 ? 0 : square;
            const real root = excess(held), ratio = asinhc(held, root), scale = R(0.5) * ratio;
            const real ga = alpha[r], gd = delta[r], share = (2 + y + x) / (2 + z);
            const real g_scale = ga * a * share + gd * b, g_share = ga * scale * a;
            const real g_square = square < 0 ? 0 : R(0.5) * g_scale * asinhc_by(held, root, ratio);
            const real g_x = g_share / (2 + z) + 2 * g_square * (1 + x);
            const real g_z = g_x * (1 + y) - g_share * share / (2 + z), g_y = g_x * (1 + z) + g_share / (2 + z);
            const real g_a = ga * scale * share + g_x * b * tv[r], g_b = gd * scale + g_x * a * tv[r];
            /* of a² tt and b² vv, which a cut keeps constant */
            const real zz_by = tt[r] > most ? 0 : a * a + 2 * a * a_by * tt[r];
            const real yy_by = vv[r] > most ? 0 : b * b + 2 * b * b_by * vv[r];
            tt[r] = g_z * zz_by / (1 + z) + 2 * g_a * a_by; /* twice the gradients in tt, vv; that in tv */
            vv[r] = g_y * yy_by / (1 + y) + 2 * g_b * b_by;
            tv[r] = g_x * a * b;
            alpha[r] = scale * a * share;
            delta[r] = scale * b;
        }
        for (int r = 0; r < count; r++) {
            EACH
            for (int64_t i = r * j->size; i < (r + 1) * j->size; i++) {
                g_t[i] = alpha[r] * grad[i] + tt[r] * t[i] + tv[r] * v[i];
                g_v[i] = delta[r] * grad[i] + vv[r] * v[i] + tv[r] * t[i];
            }
        }
    }
    return 0;
}
