/* Large matrices, by BLAS and LAPACK. Matrices here are stored row by row; BLAS stores them column
   by column, so that it sees their transposes. */
typedef struct {
  void (*gemm)(const char *, const char *, const int *, const int *, const int *, const double *,
               const double *, const int *, const double *, const int *, const double *, double *,
               const int *);
  void (*symm)(const char *, const char *, const int *, const int *, const double *,
               const double *, const int *, const double *, const int *, const double *, double *,
               const int *);
  void (*trsm)(const char *, const char *, const char *, const char *, const int *, const int *,
               const double *, const double *, const int *, double *, const int *);
  void (*trsv)(const char *, const char *, const char *, const int *, const double *, const int *,
               double *, const int *);
  void (*potrf)(const char *, const int *, double *, const int *, int *);
} Lapack;

static Lapack lapack;

void use_lapack(const Lapack *table) { lapack = *table; }

static const double ONE = 1.0, ZERO = 0.0, MINUS_ONE = -1.0;
static const int STEP = 1;

/* c (m, n) gets a scaled product of a (m, k) and b (k, n), which are stored as their transposes if
   `at` or `bt` says so, added to `beta` times what it is. The others are lengths of stored rows. */
static void product(int m, int n, int k, double alpha, const double *a, int at, int la,
                    const double *b, int bt, int lb, double beta, double *c, int lc) {
  lapack.gemm(bt ? "T" : "N", at ? "T" : "N", &n, &m, &k, &alpha, b, &lb, a, &la, &beta, c, &lc);
}

/* Take numbers below 2.2e-308 for 0 until `restore`. Matrices such as a covariance that decays with
   distance, and their factors, have many of them, each of which costs processors of Intel a hundred
   times as much as another. */
#ifdef __SSE2__
static unsigned flush_subnormals(void) {
  const unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);
  return before;
}
static void restore(unsigned before) { __builtin_ia32_ldmxcsr(before); }
#else
static unsigned flush_subnormals(void) { return 0; }
static void restore(unsigned before) { (void)before; }
#endif

/* The lower Cholesky factor of a (n, n); the first failing column plus 1, or 0. */
static double large_cholesky(int n, const double *a, double *l) {
  int info = 0;
  for (ptrdiff_t i = 0; i < n; i++) {
    for (ptrdiff_t j = 0; j <= i; j++) l[i * n + j] = a[i * n + j];
    for (ptrdiff_t j = i + 1; j < n; j++) l[i * n + j] = 0.0;
  }
  lapack.potrf("U", &n, l, &n, &info);
  return info;
}

/* Solve a x = b for triangular a (n, n), stored as its transpose if `at` says so; b and x (n, m). */
static void large_solve_triangular(int n, int m, const double *a, int at, int la, int upper,
                                   int unit, double *x) {
  const char *which = upper == at ? "U" : "L", *diagonal = unit ? "U" : "N";
  if (m == 1)
    lapack.trsv(which, at ? "N" : "T", diagonal, &n, a, &la, x, &STEP);
  else
    lapack.trsm("R", which, at ? "T" : "N", diagonal, &m, &n, &ONE, a, &la, x, &m);
}

enum { SMALL_FACTOR = 24 };

/* g gets, from the gradient for the lower factor l (n, n), that for the lower triangle of the
   matrix; both have rows of length s. By halves, as the blocks of Murray (arXiv 1602.07527),
   and element by element (Smith, 1995) for small ones. */
static void factor_gradient(int n, const double *l, double *g, int s) {
  if (n <= SMALL_FACTOR) {
    for (ptrdiff_t i = n - 1; i >= 0; i--)
      for (ptrdiff_t j = i; j >= 0; j--) {
        double *gi = g + i * s, *gj = g + j * s;
        const double *li = l + i * s, *lj = l + j * s;
        if (i == j) {
          gi[i] *= 0.5 / li[i];
          const double twice = 2.0 * gi[i];
#pragma omp simd
          for (ptrdiff_t k = 0; k < j; k++) gi[k] -= twice * li[k];
          continue;
        }
        gi[j] /= lj[j];
        gj[j] -= gi[j] * li[j];
        const double factor = gi[j];
#pragma omp simd
        for (ptrdiff_t k = 0; k < j; k++) {
          gi[k] -= factor * lj[k];
          gj[k] -= factor * li[k];
        }
      }
    return;
  }
  const int h = n / 2, r = n - h;
  const double *l21 = l + (ptrdiff_t)h * s, *l22 = l21 + h;
  double *g21 = g + (ptrdiff_t)h * s, *g22 = g21 + h;
  factor_gradient(r, l22, g22, s);
  for (ptrdiff_t i = 0; i < r; i++) g22[i * s + i] *= 2.0;
  lapack.symm("R", "U", &h, &r, &MINUS_ONE, g22, &s, l21, &s, &ONE, g21, &s);
  for (ptrdiff_t i = 0; i < r; i++) g22[i * s + i] *= 0.5;
  lapack.trsm("L", "U", "N", "N", &h, &r, &ONE, l, &s, g21, &s);
  product(h, h, r, -1.0, g21, 1, s, l21, 0, s, 1.0, g, s);
  factor_gradient(h, l, g, s);
}

/* The gradient for a symmetric matrix (n, n), from that for its lower factor. */
static void cholesky_gradient(int n, const double *l, const double *given, double *g) {
  for (ptrdiff_t i = 0; i < n; i++)
    for (ptrdiff_t j = 0; j <= i; j++) g[i * n + j] = given[i * n + j];
  factor_gradient(n, l, g, n);
  enum { TILE = 32 }; /* the transposed half is written in tiles that stay in the cache */
  for (ptrdiff_t rows = 0; rows < n; rows += TILE)
    for (ptrdiff_t columns = 0; columns <= rows; columns += TILE)
      for (ptrdiff_t i = rows; i < n && i < rows + TILE; i++)
        for (ptrdiff_t j = columns; j < i && j < columns + TILE; j++)
          g[i * n + j] = g[j * n + i] = 0.5 * g[i * n + j];
}
