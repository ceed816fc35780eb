// Rotation of queries and keys, and the store of keys and values.
//
// A pair (x, y) becomes (x cos - y sin, x sin + y cos), each product and sum rounded by itself.
#include "ops/kernels.h"
#include "ops/scale.h"

#include "simd/pairs.h"

namespace puna::PUNA_NS {
namespace {

// The angles of a row as a head needs them.
struct Angles {
  const float* cosine;  // [half]
  const float* sine;
  // For interleaved pairs: each cosine twice, and each sine with a minus and a plus, so that
  // x * cosines + (the other of the pair) * sines is the rotation, rounded as the separate formulas are.
  float cosines[kMaxHeadDim];
  float sines[kMaxHeadDim];
};

void spread(Angles& angles, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    angles.cosines[2 * j] = angles.cosines[2 * j + 1] = angles.cosine[j];
    angles.sines[2 * j] = -angles.sine[j];
    angles.sines[2 * j + 1] = angles.sine[j];
  }
}

// `out` may be `x`.
void rotate_head(const float* x, float* out, const Angles& angles, int64_t half, bool interleaved) {
  if (interleaved) {
    for_columns(2 * half, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const f32x16 v = load_lanes(x + c, lanes);
      const f32x16 turned = mul(swap_pairs(v), load_lanes(angles.sines + c, lanes));
      store_lanes(out + c, add(mul(v, load_lanes(angles.cosines + c, lanes)), turned), lanes);
    });
    return;
  }
  for_columns(half, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const f32x16 a = load_lanes(x + c, lanes), b = load_lanes(x + half + c, lanes);
    const f32x16 cos = load_lanes(angles.cosine + c, lanes), sin = load_lanes(angles.sine + c, lanes);
    store_lanes(out + c, sub(mul(a, cos), mul(b, sin)), lanes);
    store_lanes(out + half + c, add(mul(a, sin), mul(b, cos)), lanes);
  });
}

// Values to the cache's type, rounded to nearest even.
void store_kv(const float* x, uint8_t* target, int64_t count, KvType type) {
  if (type == KvType::f32) {
    memcpy(target, x, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* halves = reinterpret_cast<uint16_t*>(target);
  for_columns(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const f32x16 v = load_lanes(x + c, lanes);
    if (type == KvType::f16) {
      lanes == 16 ? store_f16(halves + c, v) : store_f16_n(halves + c, v, lanes);
    } else {
      lanes == 16 ? store_bf16(halves + c, v) : store_bf16_n(halves + c, v, lanes);
    }
  });
}

// One head as int8 codes, round-to-nearest-even(x · (1/d)); returns d = max|x| / 127. A head whose d is below the smallest
// normal float has d = 0, one that holds an infinity or NaN has d = NaN, and codes 0.
float store_codes(const float* x, uint8_t* target, int64_t count) {
  i32x16 top = set1_i32(0);
  for_columns(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    top = max_i32(top, as_i32(abs(load_lanes(x + c, lanes))));
  });
  const Scale scale(__builtin_bit_cast(float, reduce_max_i32(top)), 127.0f);
  for_columns(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    int8_t codes[16];
    store_i8(codes, scale.code(load_lanes(x + c, lanes)));
    memcpy(target + c, codes, static_cast<size_t>(lanes));
  });
  return scale.d;
}

// Keys or values of one position.
void store_heads(const RopeKvArgs& args, const float* x, int64_t head, int64_t heads, int64_t row, uint8_t* elements,
                 float* scales) {
  const int64_t dim = args.head_dim, first = row * args.num_kv_heads + head;
  if (args.kv.type != KvType::i8) {
    store_kv(x, elements + first * dim * kv_element_bytes(args.kv.type), heads * dim, args.kv.type);
    return;
  }
  for (int64_t i = 0; i < heads; ++i) scales[first + i] = store_codes(x + i * dim, elements + (first + i) * dim, dim);
}

}  // namespace

void rope_kv(const RopeKvArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t half = args.rot_dim / 2, dim = args.head_dim;
  Angles angles;
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* x = args.x + row * args.ldx;
    angles.cosine = args.angles + row * args.ld_angles;
    angles.sine = angles.cosine + half;
    if (args.interleaved) spread(angles, half);
    for (int64_t head = 0; head < args.num_heads; ++head) {
      float* q = x + args.q_col + head * dim;
      rotate_head(q, q, angles, half, args.interleaved);
    }
    const int64_t position = args.position_of[row];
    const int64_t page = args.kv.table[args.request_of[row] * args.kv.table_stride + position / args.kv.page_size];
    const int64_t slot = page * args.kv.page_rows + position % args.kv.page_size;
    for (int64_t head = 0; head < args.num_kv_heads; ++head) {
      const float* k = x + args.k_col + head * dim;
      float rotated[kMaxHeadDim];
      rotate_head(k, rotated, angles, half, args.interleaved);
      memcpy(rotated + args.rot_dim, k + args.rot_dim, static_cast<size_t>(dim - args.rot_dim) * sizeof(float));
      store_heads(args, rotated, head, 1, slot, args.kv.keys, args.kv.key_scales);
    }
    store_heads(args, x + args.v_col, 0, args.num_kv_heads, slot, args.kv.values, args.kv.value_scales);
  }
}

}  // namespace puna::PUNA_NS
