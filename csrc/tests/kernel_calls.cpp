#include "kernel_calls.h"

#include <stdexcept>

#include "core/thread_pool.h"

namespace puna::replay {

const Format& format_of(const Call& call) {
  const Format* format = find_format(call.text("format").c_str());
  if (format == nullptr) throw std::runtime_error("no such format: " + call.text("format"));
  return *format;
}

bool run_call(const Call& call, const KernelTable& kernels) {
  struct Check {
    const char* op;
    bool (*run)(const Call&, const KernelTable&);
  };
  static constexpr Check kChecks[] = {
      {"dequantize", check_dequantize}, {"quantize", check_quantize}, {"matmul", check_matmul},
      {"norm", check_norm},             {"softcap", check_softcap},
      {"glu", check_glu},     {"add", check_add},
      {"scale", check_scale},           {"clamp", check_clamp},       {"rope_kv", check_rope_kv},
      {"attention", check_attention},
  };
  for (const Check& check : kChecks) {
    if (call.op() != check.op) continue;
    if (check.run == check_dequantize) return check.run(call, kernels);  // which readers call, subnormals and all
    const FlushSubnormals flush;  // as in every thread of a program
    return check.run(call, kernels);
  }
  throw std::runtime_error("no such kernel: " + call.op());
}

}  // namespace puna::replay
