/* Normal numbers by the ziggurat method with 256 layers (Marsaglia and Tsang, "The ziggurat method for
   generating random variables", Journal of Statistical Software 5, 2000), in the form of Doornik ("An
   improved ziggurat method to generate normal random samples", 2005), where the layer and the place
   in it come from different bits. The bits are those of xoshiro256++ (Blackman and Vigna,
   "Scrambled linear pseudorandom number generators", ACM TOMS 47, 2021), whose state at a step is
   drawn by Philox from a key and the number of the step. */

enum { LAYERS = 256, SEED = 2 };
#define TAIL 3.6541528853610088 /* where the tail begins, for 256 layers of equal area */

static double layer_x[LAYERS + 1], layer_ratio[LAYERS];

typedef struct {
    uint64_t state[4];
} Random;

/* Compute the layers; once, before any number is drawn. */
void prepare_ziggurat(void) {
    double density = exp(-0.5 * TAIL * TAIL);
    double area = TAIL * density + sqrt(2.0 * atan(1.0)) * erfc(TAIL * sqrt(0.5));
    layer_x[0] = area / density;
    layer_x[1] = TAIL;
    for (int i = 2; i < LAYERS; i++) {
        layer_x[i] = sqrt(-2.0 * log(area / layer_x[i - 1] + density));
        density = exp(-0.5 * layer_x[i] * layer_x[i]);
    }
    layer_x[LAYERS] = 0.0;
    for (int i = 0; i < LAYERS; i++) layer_ratio[i] = layer_x[i + 1] / layer_x[i];
}

static Random seeded(uint64_t key, uint64_t step) {
    Random random;
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t words[4] = {half, SEED, (uint32_t)step, (uint32_t)(step >> 32)};
        philox(words, key);
        random.state[2 * half] = (uint64_t)words[0] << 32 | words[1];
        random.state[2 * half + 1] = (uint64_t)words[2] << 32 | words[3];
    }
    return random;
}

static inline uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline uint64_t bits(Random *random) {
    uint64_t *s = random->state, result = rotated(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotated(s[3], 45);
    return result;
}

/* A number in (0, 1). */
static inline double unit(Random *random) {
    return ((double)(bits(random) >> 12) + 0.5) * 0x1p-52;
}

static double beyond_tail(Random *random) {
    double x, y;
    do {
        x = -log(unit(random)) / TAIL;
        y = -log(unit(random));
    } while (2.0 * y < x * x);
    return TAIL + x;
}

static inline double normal(Random *random) {
    for (;;) {
        uint64_t drawn = bits(random);
        int i = (int)(drawn & (LAYERS - 1));
        double u = ((double)(drawn >> 12) + 0.5) * 0x1p-51 - 1.0; /* in (-1, 1) */
        if (fabs(u) < layer_ratio[i]) return u * layer_x[i];
        if (i == 0) return copysign(beyond_tail(random), u);
        double x = u * layer_x[i];
        double low = exp(-0.5 * (layer_x[i] * layer_x[i] - x * x));
        double high = exp(-0.5 * (layer_x[i + 1] * layer_x[i + 1] - x * x));
        if (high + unit(random) * (low - high) < 1.0) return x;
    }
}

/* Standard normal numbers of several steps: (steps, size). */
void fill_normals(uint64_t key, uint64_t first, uint64_t steps, uint64_t size, double *out) {
    for (uint64_t s = 0; s < steps; s++) {
        Random random = seeded(key, first + s);
        for (uint64_t i = 0; i < size; i++) out[s * size + i] = normal(&random);
    }
}
