// Kernels that take row by row: norms, gated activations, sums, factors, limits.
#include <algorithm>

#include "compare.h"
#include "guarded.h"
#include "kernel_calls.h"
#include "quant/a8.h"

namespace puna::replay {
namespace {

constexpr int64_t kFloat = sizeof(float);

// Rows of floats that are `ld` floats apart; between them NaN.
class Table {
 public:
  Table(int64_t rows, int64_t width, int64_t ld) : rows_(rows), width_(width), ld(ld), memory_(bytes()) {}
  Table(const std::vector<float>& values, int64_t width, int64_t ld)
      : Table(static_cast<int64_t>(values.size()) / width, width, ld) {
    for (int64_t row = 0; row < rows_; ++row) {
      std::copy_n(values.data() + row * width, width, data() + row * ld);
    }
  }
  float* data() const { return memory_.floats(); }
  bool holds(const std::string& where, const std::vector<float>& recorded) const {
    return is_equal_rows(where, data(), ld, recorded.data(), rows_, width_);
  }

 private:
  int64_t bytes() const { return ((rows_ - 1) * ld + width_) * kFloat; }
  int64_t rows_, width_;

 public:
  const int64_t ld;

 private:
  Guarded memory_;
};

// All rows at once, or the last one first.
template <typename F>
void each_way(int64_t rows, F f) {
  f("", [&](auto kernel) { kernel(0, rows); });
  f(", in parts", [&](auto kernel) {
    kernel(rows - 1, rows);
    kernel(0, rows - 1);
  });
}

// Norm and glu: into floats, into codes, into both. `Args` are complete but for what they write.
template <typename Args>
bool check_results(const Call& call, const KernelTable& kernels, Args args,
                   void (*kernel)(const Args&, int64_t, int64_t, float*)) {
  const std::vector<float> recorded = call.floats("out");
  const int64_t width = args.width, rows = static_cast<int64_t>(recorded.size()) / width;
  const int64_t code_bytes = width % kA8BlockElements == 0 ? (rows + 15) / 16 * 16 * a8_row_bytes(width) : 0;
  const Guarded wanted(code_bytes, kAligned);
  if (code_bytes > 0) kernels.quantize_a8(recorded.data(), width, 0, rows, width, wanted.data());

  bool is_good = true;
  each_way(rows, [&](const char* way, auto run) {
    for (const bool has_out : {true, false}) {
      for (const bool has_codes : {true, false}) {
        if (!(has_out || has_codes) || (has_codes && code_bytes == 0)) continue;
        const std::string where = call.where() + way + (has_codes ? ", with codes" : "");
        const Table out(rows, width, width + 1);
        const Guarded codes(code_bytes, kAligned);
        const Guarded scratch((width + 15) / 16 * 16 * kFloat, kAligned);
        args.out = has_out ? out.data() : nullptr;
        args.ldo = out.ld;
        args.a8 = has_codes ? codes.data() : nullptr;
        run([&](int64_t begin, int64_t end) { kernel(args, begin, end, has_out ? nullptr : scratch.floats()); });
        if (has_out) is_good &= out.holds(where, recorded);
        if (has_codes) is_good &= is_equal(where, codes.data(), wanted.data(), code_bytes);
      }
    }
  });
  return is_good;
}

}  // namespace

bool check_norm(const Call& call, const KernelTable& kernels) {
  const std::vector<float> values = call.floats("x");
  NormArgs args = {};
  args.kind = call.text("kind") == "rms" ? NormKind::rms : NormKind::layer;
  args.width = call.integer("width");
  args.eps = call.number("eps");
  const Table x(values, args.width, args.width + 2);
  args.x = x.data();
  args.ldx = x.ld;
  const std::vector<float> none, weights = call.has("weight") ? call.floats("weight") : none;
  const std::vector<float> biases = call.has("bias") ? call.floats("bias") : none;
  const Guarded weight(weights.data(), static_cast<int64_t>(weights.size()) * kFloat);
  const Guarded bias(biases.data(), static_cast<int64_t>(biases.size()) * kFloat);
  if (!weights.empty()) args.weight = weight.floats();
  if (!biases.empty()) args.bias = bias.floats();
  if (!check_results(call, kernels, args, kernels.norm)) return false;

  args.out = x.data();  // in place
  args.ldo = x.ld;
  kernels.norm(args, 0, static_cast<int64_t>(values.size()) / args.width, nullptr);
  return x.holds(call.where() + ", in place", call.floats("out"));
}

bool check_glu(const Call& call, const KernelTable& kernels) {
  GluArgs args = {};
  args.width = call.integer("width");
  args.activation = call.text("activation") == "silu" ? Activation::silu : Activation::gelu_tanh;
  const Table x(call.floats("x"), 2 * args.width, 2 * args.width + 2);
  args.x = x.data();
  args.ldx = x.ld;
  return check_results(call, kernels, args, kernels.glu);
}

bool check_add(const Call& call, const KernelTable& kernels) {
  const std::vector<float> recorded = call.floats("out");
  AddArgs args = {};
  args.width = call.integer("width");
  args.multiplier = call.number("multiplier");
  const int64_t rows = static_cast<int64_t>(recorded.size()) / args.width;
  bool is_good = true;
  each_way(rows, [&](const char* way, auto run) {
    // Into a table of its own, into a, into b.
    for (int target = 0; target < 3; ++target) {
      const Table a(call.floats("a"), args.width, args.width + 1), b(call.floats("b"), args.width, args.width + 2);
      const Table apart(rows, args.width, args.width + 3);
      const Table& out = target == 0 ? apart : target == 1 ? a : b;
      args.a = a.data();
      args.lda = a.ld;
      args.b = b.data();
      args.ldb = b.ld;
      args.out = out.data();
      args.ldo = out.ld;
      run([&](int64_t begin, int64_t end) { kernels.add(args, begin, end); });
      is_good &= out.holds(call.where() + way + ", target " + std::to_string(target), recorded);
    }
  });
  return is_good;
}

bool check_softcap(const Call& call, const KernelTable& kernels) {
  const std::vector<float> recorded = call.floats("out");
  SoftcapArgs args = {};
  args.width = call.integer("width");
  args.cap = call.number("cap");
  const int64_t rows = static_cast<int64_t>(recorded.size()) / args.width;
  bool is_good = true;
  each_way(rows, [&](const char* way, auto run) {
    const Table x(call.floats("x"), args.width, args.width + 1);
    args.x = x.data();
    args.ldx = x.ld;
    run([&](int64_t begin, int64_t end) { kernels.softcap(args, begin, end); });
    is_good &= x.holds(call.where() + way, recorded);
  });
  return is_good;
}

bool check_scale(const Call& call, const KernelTable& kernels) {
  const std::vector<float> recorded = call.floats("out");
  ScaleArgs args = {};
  args.width = call.integer("width");
  args.factor = call.number("factor");
  args.divide = call.flag("divide");
  const int64_t rows = static_cast<int64_t>(recorded.size()) / args.width;
  bool is_good = true;
  each_way(rows, [&](const char* way, auto run) {
    for (const bool is_apart : {true, false}) {
      const Table x(call.floats("x"), args.width, args.width + 1), apart(rows, args.width, args.width + 3);
      const Table& out = is_apart ? apart : x;
      args.x = x.data();
      args.ldx = x.ld;
      args.out = out.data();
      args.ldo = out.ld;
      run([&](int64_t begin, int64_t end) { kernels.scale(args, begin, end); });
      is_good &= out.holds(call.where() + way + (is_apart ? "" : ", in place"), recorded);
    }
  });
  return is_good;
}

bool check_clamp(const Call& call, const KernelTable& kernels) {
  const std::vector<float> recorded = call.floats("out");
  ClampArgs args = {};
  args.width = call.integer("width");
  args.limit = call.number("limit");
  bool is_good = true;
  each_way(static_cast<int64_t>(recorded.size()) / args.width, [&](const char* way, auto run) {
    const Table x(call.floats("x"), args.width, args.width + 1);
    args.x = x.data();
    args.ldx = x.ld;
    run([&](int64_t begin, int64_t end) { kernels.clamp(args, begin, end); });
    is_good &= x.holds(call.where() + way, recorded);
  });
  return is_good;
}

}  // namespace puna::replay
