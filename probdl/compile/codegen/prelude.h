/* What the generated code stands on. The declarations replace math.h: with the `simd` attribute
   gcc turns calls in loops into the vector functions of libmvec, which math.h offers only under
   -ffast-math, and that would break NaN and infinity. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define INFINITY (__builtin_inf())
#define NAN (__builtin_nan(""))

#if defined(__linux__)
#include <features.h>
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define VECTOR __attribute__((simd("notinbranch"), const))
#if __GLIBC_PREREQ(2, 35)
#define VECTOR_235 VECTOR
#endif
#else
#define VECTOR __attribute__((const))
#endif
#ifndef VECTOR_235
#define VECTOR_235 __attribute__((const))
#endif

double exp(double) VECTOR, log(double) VECTOR, sin(double) VECTOR, cos(double) VECTOR;
double pow(double, double) VECTOR;
double expm1(double) VECTOR_235, log1p(double) VECTOR_235, log2(double) VECTOR_235;
double log10(double) VECTOR_235, exp2(double) VECTOR_235, tan(double) VECTOR_235;
double asin(double) VECTOR_235, acos(double) VECTOR_235, atan(double) VECTOR_235;
double sinh(double) VECTOR_235, cosh(double) VECTOR_235;
double asinh(double) VECTOR_235, acosh(double) VECTOR_235, atanh(double) VECTOR_235;
double erf(double) VECTOR_235, erfc(double) VECTOR_235, atan2(double, double) VECTOR_235;
double sqrt(double), fabs(double), floor(double), ceil(double), trunc(double), nearbyint(double);
double fmod(double, double), lgamma_r(double, int *), hypot(double, double);
double copysign(double, double);

/* By exp(-|x|), which log-sigmoid has too: where both are computed, compilers take it once. */
static inline double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

/* libmvec's takes one and a half times as long. Near 0, where 1 - 2 / (exp(2x) + 1) cancels, it is
   a rational function of Moshier's Cephes library; from 22 on it rounds to 1. */
static inline double tanh_of(double x) {
  const double a = fabs(x) > 22.0 ? 22.0 : fabs(x), u = a * a;
  const double p = (-0.964399179425052238628 * u - 99.2877231001918586564) * u - 1614.68768441708447952;
  const double q = ((u + 112.811678491632931402) * u + 2235.48839060100448583) * u + 4844.06305325125486048;
  const double near = a + a * u * (p / q), far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return copysign(a < 0.625 ? near : far, x);
}

/* A NaN in either operand comes through, as in torch. */
static inline double at_least(double a, double b) { return (a >= b || a != a) ? a : b; }
static inline double at_most(double a, double b) { return (a <= b || a != a) ? a : b; }

/* As in torch: the remainder has the sign of b, and the quotient goes with it. */
static inline double floor_remainder(double a, double b) {
  const double m = fmod(a, b);
  return m != 0.0 && (m < 0.0) != (b < 0.0) ? m + b : m;
}

static inline double floor_quotient(double a, double b) {
  if (b == 0.0) return a / b;
  const double m = fmod(a, b);
  const double q = (a - m) / b - (m != 0.0 && (m < 0.0) != (b < 0.0) ? 1.0 : 0.0);
  const double f = floor(q);
  return q - f > 0.5 ? f + 1.0 : f;
}

static double log_gamma(double x) {
  int sign; /* lgamma itself writes to a global */
  return lgamma_r(x, &sign);
}

/* Reflection below 0, recurrence up to 10, then the asymptotic series (Abramowitz and Stegun,
   6.3.7, 6.3.5 and 6.3.18), whose next term is below 1e-16 there. */
static double digamma(double x) {
  const double pi = 3.14159265358979323846;
  double result = 0.0;
  if (x <= 0.0) {
    if (x == floor(x)) return x == 0.0 ? -INFINITY : NAN;
    result = -pi / tan(pi * (x - floor(x)));
    x = 1.0 - x;
  }
  for (; x < 10.0; x += 1.0) result -= 1.0 / x;
  const double y = 1.0 / (x * x);
  const double series =
      y * (1.0 / 12 -
           y * (1.0 / 120 -
                y * (1.0 / 252 -
                     y * (1.0 / 240 - y * (1.0 / 132 - y * (691.0 / 32760 - y * (1.0 / 12)))))));
  return result + log(x) - 0.5 / x - series;
}

/* The Hurwitz zeta function for s > 1: ten terms, then Euler and Maclaurin's formula (DLMF, 25.11.5),
   whose next term is below 1e-16 for q + 10 > 10. */
static double zeta(double s, double q) {
  if (s == 1.0) return INFINITY;
  if (s < 1.0) return NAN;
  if (q <= 0.0) {
    if (q == floor(q)) return INFINITY;
    if (s != floor(s)) return NAN;
  }
  double sum = 0.0;
  for (; q <= 0.0; q += 1.0) sum += pow(q, -s);
  for (int k = 0; k < 10; k++, q += 1.0) sum += pow(q, -s);
  /* Bernoulli numbers B_2j / (2j)! */
  static const double ratios[] = {
      1.0 / 12,          -1.0 / 720,           1.0 / 30240,           -1.0 / 1209600,
      1.0 / 47900160,    -691.0 / 1307674368000, 1.0 / 74724249600.0, -3617.0 / 10670622842880000.0,
  };
  sum += pow(q, 1.0 - s) / (s - 1.0) + 0.5 * pow(q, -s);
  double factor = s * pow(q, -s - 1.0);
  for (int j = 0; j < 8; j++) {
    sum += ratios[j] * factor;
    factor *= (s + 2 * j + 1) * (s + 2 * j + 2) / (q * q);
  }
  return sum;
}

/* The derivatives of digamma, as torch has them: n = 1 with reflection below 1/2. */
static double polygamma(double n, double x) {
  const double pi = 3.14159265358979323846;
  if (n == 0.0) return digamma(x);
  if (n == 1.0 && x < 0.5) {
    const double s = sin(pi * x);
    return pi * pi / (s * s) - zeta(2.0, 1.0 - x);
  }
  const double sign = fmod(n, 2.0) == 0.0 ? -1.0 : 1.0;
  return sign * exp(log_gamma(n + 1.0)) * zeta(n + 1.0, x);
}

/* The lower Cholesky factor of a (n, n), row-major; the first failing column plus 1, or 0. */
static double cholesky(size_t n, const double *a, double *l) {
  for (size_t i = 0; i < n; i++) {
    for (size_t j = 0; j <= i; j++) {
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (size_t k = 0; k < j; k++) sum += l[i * n + k] * l[j * n + k];
      const double rest = a[i * n + j] - sum;
      if (i > j) {
        l[i * n + j] = rest / l[j * n + j];
      } else if (rest > 0.0) {
        l[i * n + i] = sqrt(rest);
      } else {
        return (double)(i + 1);
      }
    }
    for (size_t j = i + 1; j < n; j++) l[i * n + j] = 0.0;
  }
  return 0.0;
}

/* Solve a x = b for triangular a (n, n) with strides (ar, ac), b and x (n, m) row-major. */
static void solve_triangular(size_t n, size_t m, const double *a, ptrdiff_t ar, ptrdiff_t ac,
                             int upper, int unit, double *x) {
  for (size_t step = 0; step < n; step++) {
    const ptrdiff_t i = upper ? (ptrdiff_t)(n - 1 - step) : (ptrdiff_t)step;
    double *xi = x + i * m;
    const ptrdiff_t first = upper ? i + 1 : 0, last = upper ? (ptrdiff_t)n : i;
    for (ptrdiff_t k = first; k < last; k++) {
      const double factor = a[i * ar + k * ac];
      const double *xk = x + k * m;
#pragma omp simd
      for (size_t j = 0; j < m; j++) xi[j] -= factor * xk[j];
    }
    if (!unit) {
      const double pivot = a[i * ar + i * ac];
      for (size_t j = 0; j < m; j++) xi[j] /= pivot;
    }
  }
}

/* c (m, n), row-major, gets the product of a (m, k) and b (k, n), given by their strides, added to
   what it is if `add` says so. The order of the loops is the one whose inner loop runs along
   memory. */
static inline __attribute__((always_inline)) void multiply(
    size_t m, size_t n, size_t k, const double *a, ptrdiff_t ar, ptrdiff_t ac, const double *b,
    ptrdiff_t br, ptrdiff_t bc, double *restrict c, int add) {
  if (n > 1 && bc == 1) {
    for (size_t i = 0; i < m; i++) {
      double *ci = c + i * n;
      if (!add)
        for (size_t j = 0; j < n; j++) ci[j] = 0.0;
      for (size_t p = 0; p < k; p++) {
        const double factor = a[i * ar + p * ac];
        const double *bp = b + p * br;
#pragma omp simd
        for (size_t j = 0; j < n; j++) ci[j] += factor * bp[j];
      }
    }
  } else if (n == 1 && m <= 4 && k > m) {
    for (size_t i = 0; i < m; i++) {
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (size_t p = 0; p < k; p++) sum += a[i * ar + p * ac] * b[p * br];
      c[i] = add ? c[i] + sum : sum;
    }
  } else if (n == 1 && ar == 1 && ac != 1) {
    if (!add)
      for (size_t i = 0; i < m; i++) c[i] = 0.0;
    for (size_t p = 0; p < k; p++) {
      const double factor = b[p * br];
      const double *ap = a + p * ac;
#pragma omp simd
      for (size_t i = 0; i < m; i++) c[i] += factor * ap[i];
    }
  } else if (n == 1 && k <= 16 && m > 16) {
#pragma omp simd
    for (size_t i = 0; i < m; i++) {
      double sum = 0.0;
      for (size_t p = 0; p < k; p++) sum += a[i * ar + p * ac] * b[p * br];
      c[i] = add ? c[i] + sum : sum;
    }
  } else {
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++) {
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (size_t p = 0; p < k; p++) sum += a[i * ar + p * ac] * b[p * br + j * bc];
        c[i * n + j] = add ? c[i * n + j] + sum : sum;
      }
  }
}

/* What is bound to one set of data: its arrays, the work space of each thread that may call, and
   how many threads a call may use. */
typedef struct {
  const double *const *data;
  double *const *work;
  uint32_t *busy;
  uint64_t slots;
  uint64_t threads;
} Bound;

/* A pass over many rows, in chunks. Each chunk has memory of its own, where its totals come first,
   so that the result does not depend on how many threads share the chunks out. */
typedef void Pass(const double *restrict z, const double *const *restrict d, double *restrict w,
                  double *restrict g, ptrdiff_t first, ptrdiff_t last, double *restrict own);
typedef struct {
  Pass *pass;
  const double *z;
  const double *const *d;
  double *w;
  double *g;
  ptrdiff_t rows;
  ptrdiff_t chunks;
  double *own;
  ptrdiff_t size;
  ptrdiff_t next;
} Rows;

static void *take_chunks(void *given) {
  Rows *r = given;
  for (;;) {
    const ptrdiff_t c = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
    if (c >= r->chunks) return 0;
    r->pass(r->z, r->d, r->w, r->g, r->rows * c / r->chunks, r->rows * (c + 1) / r->chunks,
            r->own + r->size * c);
  }
}

enum { MOST_THREADS = 64 };

static inline void over_rows(Rows r, uint64_t threads) {
  pthread_t others[MOST_THREADS];
  uint64_t started = 0;
  while (started + 1 < threads && started + 1 < (uint64_t)r.chunks && started < MOST_THREADS &&
         !pthread_create(others + started, 0, take_chunks, &r))
    started++;
  take_chunks(&r);
  while (started) pthread_join(others[--started], 0);
}

/* The sampler keeps points of R^d; they become the values of the sites afterwards, all at once. */
int64_t expand(uint64_t dim, uint64_t expanded, const double *z, double *out, const void *user) {
  (void)user;
  if (dim != expanded) return -1;
  for (uint64_t i = 0; i < dim; i++) out[i] = z[i];
  return 0;
}
