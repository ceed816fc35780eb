// Weights to blocks: which search each format takes.
#include "ops/kernels.h"

#include "ops/quantize_blocks.h"

namespace puna::PUNA_NS {
namespace {

void write_blocks(const QuantizeArgs& args, const BlockParts* parts, int64_t first, int count) {
  for (int b = 0; b < count; ++b) args.format->encode(parts[b], args.out + (first + b) * args.format->block_bytes);
}

// What sixteen lanes hold: one block each, or the groups of one or two super-blocks.
template <int N, int kBlock>
class Lanes {
 public:
  static constexpr int kPer = kBlock / N, kBlocks = kLanes / kPer;

  Lanes(const QuantizeArgs& args, int64_t block, int64_t blocks)
      : args_(args), block_(block), blocks_(blocks < kBlocks ? static_cast<int>(blocks) : kBlocks) {
    float x[N][kLanes] = {}, w[N][kLanes];
    for (int i = 0; i < N; ++i) {
      for (int l = 0; l < kLanes; ++l) w[i][l] = 1.0f;
    }
    for (int l = 0; l < blocks_ * kPer; ++l) {
      const int64_t first = block * kBlock + int64_t{l} * N;
      for (int i = 0; i < N; ++i) x[i][l] = args.x[first + i];
      if (args.importance == nullptr) continue;
      for (int i = 0; i < N; ++i) w[i][l] = args.importance[first % args.cols + i];
    }
    for (int i = 0; i < N; ++i) {
      groups.x[i] = load(x[i]);
      groups.w[i] = load(w[i]);
      groups.wx[i] = mul(groups.x[i], groups.w[i]);
    }
  }

  // Codes of the values nearest to (x + low) / step.
  template <typename Values>
  void set_codes(f32x16 step, f32x16 low) {
    const f32x16 per = inverse(step);
    for (int i = 0; i < N; ++i) {
      int32_t codes[kLanes];
      store_i32(codes, Values::code(mul(add(groups.x[i], low), per)));
      for (int l = 0; l < blocks_ * kPer; ++l) {
        parts_[l / kPer].codes[l % kPer * N + i] = static_cast<uint8_t>(codes[l]);
      }
    }
  }
  void set_d(f32x16 d) { set_halves(d, &BlockParts::d); }
  void set_m(f32x16 m) { set_halves(m, &BlockParts::m); }
  void set_scales(f32x16 scales) {
    int32_t v[kLanes];
    store_i32(v, round_i32(scales));
    for (int l = 0; l < blocks_ * kPer; ++l) parts_[l / kPer].scales[l % kPer] = static_cast<int8_t>(v[l]);
  }
  void set_mins(f32x16 mins) {
    int32_t v[kLanes];
    store_i32(v, round_i32(mins));
    for (int l = 0; l < blocks_ * kPer; ++l) parts_[l / kPer].mins[l % kPer] = static_cast<uint8_t>(v[l]);
  }

  void write() const { write_blocks(args_, parts_, block_, blocks_); }

  Groups<N> groups;

 private:
  void set_halves(f32x16 values, uint16_t BlockParts::*member) {
    uint16_t v[kLanes];
    store_f16(v, values);
    for (int b = 0; b < blocks_; ++b) parts_[b].*member = v[b * kPer];
  }

  const QuantizeArgs& args_;
  int64_t block_;
  int blocks_;
  BlockParts parts_[kBlocks] = {};
};

// Calls f(lanes) for sixteen lanes after the other; what f leaves is written.
template <int N, int kBlock, typename F>
void each_lanes(const QuantizeArgs& args, int64_t begin, int64_t end, F f) {
  for (int64_t block = begin; block < end; block += Lanes<N, kBlock>::kBlocks) {
    Lanes<N, kBlock> lanes(args, block, end - block);
    f(lanes);
    lanes.write();
  }
}

template <typename Values>
void quantize_scaled(const QuantizeArgs& args, int64_t begin, int64_t end, Sweep up, Sweep down) {
  each_lanes<32, 32>(args, begin, end, [&](Lanes<32, 32>& lanes) {
    const f32x16 d = round_half(search_scale<32, Values>(lanes.groups, up, down));
    lanes.set_d(d);
    lanes.set_codes<Values>(d, zero());
  });
}

void quantize_q8_0(const QuantizeArgs& args, int64_t begin, int64_t end) {
  each_lanes<32, 32>(args, begin, end, [](Lanes<32, 32>& lanes) {
    const f32x16 d = search_fine_scale<32, Integers<-127, 127>>(lanes.groups, {127.0f, -0.125f, 7});
    lanes.set_d(d);
    lanes.set_codes<Integers<-127, 127>>(d, zero());
  });
}

template <int Most>
void quantize_affine(const QuantizeArgs& args, int64_t begin, int64_t end, Sweep codes, Sweep shifts) {
  each_lanes<32, 32>(args, begin, end, [&](Lanes<32, 32>& lanes) {
    const Affine found = search_affine<32, Most, false>(lanes.groups, codes, shifts);
    const f32x16 d = round_half(found.scale), m = round_half(found.low);
    lanes.set_d(d);
    lanes.set_m(m);
    lanes.set_codes<Integers<0, Most>>(d, neg(m));
  });
}

template <int N, typename Values, int Low, int High>
void quantize_scales(const QuantizeArgs& args, int64_t begin, int64_t end, Sweep up, Sweep down) {
  each_lanes<N, kBlockElements>(args, begin, end, [&](Lanes<N, kBlockElements>& lanes) {
    const ScaledGroups found = search_scales<N, Values, Low, High>(lanes.groups, up, down);
    lanes.set_d(found.d);
    lanes.set_scales(found.scale);
    lanes.template set_codes<Values>(mul(found.d, found.scale), zero());
  });
}

template <int N, int Most, int High, int Reach>
void quantize_affines(const QuantizeArgs& args, int64_t begin, int64_t end, Sweep codes, Sweep shifts,
                         Sweep starts) {
  each_lanes<N, kBlockElements>(args, begin, end, [&](Lanes<N, kBlockElements>& lanes) {
    const AffineGroups found = search_affines<N, Most, High, Reach>(lanes.groups, codes, shifts, starts);
    lanes.set_d(found.d);
    lanes.set_m(found.m);
    lanes.set_scales(found.scale);
    lanes.set_mins(found.min);
    lanes.template set_codes<Integers<0, Most>>(mul(found.d, found.scale), mul(found.m, found.min));
  });
}

}  // namespace

void quantize(const QuantizeArgs& args, int64_t begin, int64_t end) {
  switch (args.format->kernel) {
    case Kernel::q4_0:
      quantize_scaled<Integers<-8, 7>>(args, begin, end, {-6.75f, -0.25f, 14}, {6.25f, 0.25f, 12});
      break;
    case Kernel::q5_0:
      quantize_scaled<Integers<-16, 15>>(args, begin, end, {-14.75f, -0.25f, 12}, {14.0f, 0.25f, 10});
      break;
    case Kernel::iq4_nl:
      quantize_scaled<Iq4Table>(args, begin, end, {-110.0f, -4.0f, 12}, {100.0f, 4.0f, 10});
      break;
    case Kernel::q8_0:
      quantize_q8_0(args, begin, end);
      break;
    case Kernel::q4_1:
      quantize_affine<15>(args, begin, end, {13.5f, 0.25f, 14}, {-0.25f, 0.25f, 3});
      break;
    case Kernel::q5_1:
      quantize_affine<31>(args, begin, end, {29.5f, 0.25f, 12}, {-0.25f, 0.25f, 3});
      break;
    case Kernel::q3_k:
      quantize_scales<16, Integers<-4, 3>, -32, 31>(args, begin, end, {-2.75f, -0.25f, 14}, {2.25f, 0.25f, 12});
      break;
    case Kernel::q6_k:
      quantize_scales<16, Integers<-32, 31>, -128, 127>(args, begin, end, {-30.75f, -0.25f, 11},
                                                        {30.0f, 0.25f, 9});
      break;
    case Kernel::iq4_xs:
      quantize_scales<32, Iq4Table, -32, 31>(args, begin, end, {-110.0f, -4.0f, 12}, {100.0f, 4.0f, 10});
      break;
    case Kernel::q2_k:
      quantize_affines<16, 3, 15, 2>(args, begin, end, {1.75f, 0.25f, 12}, {-0.25f, 0.25f, 3},
                                     {0.9f, 0.1f, 2});
      break;
    case Kernel::q4_k:
      quantize_affines<32, 15, 63, 1>(args, begin, end, {13.5f, 0.25f, 14}, {-0.25f, 0.25f, 3}, {1.0f, 0.0f, 1});
      break;
    case Kernel::q5_k:
      quantize_affines<32, 31, 63, 1>(args, begin, end, {29.5f, 0.25f, 12}, {0.0f, 0.0f, 1}, {1.0f, 0.0f, 1});
      break;
    default:
      break;
  }
}

}  // namespace puna::PUNA_NS
