/* Operations that torch computes: its number, the operands, and where the results go. */
typedef void (*Call)(int64_t, const double *const *, double *const *);
static Call call_torch;

void use_torch(Call call) { call_torch = call; }

