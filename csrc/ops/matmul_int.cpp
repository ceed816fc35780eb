// Products of the integer formats: which tile belongs to which format, and the walk over panels and rows.
#include "matmul.h"

#include "../quant/a8.h"
#include "../quant/fp4.h"
#include "../quant/iq4.h"
#include "../quant/q2_q3_k.h"
#include "../quant/q4.h"
#include "../quant/q4_q5_k.h"
#include "../quant/q5.h"
#include "../quant/q6_k.h"
#include "../quant/q8.h"

#ifdef PUNA_VARIANT_AVX2
#include "dot_deferred.h"
#else
#include "dot_direct.h"
#endif

namespace puna::PUNA_NS {
namespace {

// One per format; dot_direct.h and dot_deferred.h say how many panels are multiplied together.
struct IntegerKernel {
  int64_t unit_elements, unit_bytes;
  void (*multiply)(const IntegerOperands& operands, int64_t panels, float* out);
};
template <class W>
constexpr IntegerKernel kKernel = {W::kUnitElements, W::kUnitBytes, multiply<W>};

IntegerKernel integer_kernel(Kernel kernel) {
  switch (kernel) {
    case Kernel::q4_0: return kKernel<Q4_0Weights>;
    case Kernel::q4_1: return kKernel<Q4_1Weights>;
    case Kernel::q5_0: return kKernel<Q5_0Weights>;
    case Kernel::q5_1: return kKernel<Q5_1Weights>;
    case Kernel::q8_0: return kKernel<Q8_0Weights>;
    case Kernel::iq4_nl: return kKernel<IQ4_NLWeights>;
    case Kernel::q4_k: return kKernel<Q4_KWeights>;
    case Kernel::q5_k: return kKernel<Q5_KWeights>;
    case Kernel::q6_k: return kKernel<Q6_KWeights>;
    case Kernel::iq4_xs: return kKernel<IQ4_XSWeights>;
    case Kernel::q2_k: return kKernel<Q2_KWeights>;
    case Kernel::q3_k: return kKernel<Q3_KWeights>;
    case Kernel::mxfp4: return kKernel<MXFP4Weights>;
    default: __builtin_unreachable();
  }
}

}  // namespace

void add_pairs(float* acc, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* pair = acc + 2 * kPanelRows * row;
    store(acc + kPanelRows * row, add(load(pair), load(pair + kPanelRows)));
  }
}

void integer_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) {
  const IntegerKernel kernel = integer_kernel(args.kernel);
  const int64_t units = (args.cols + kernel.unit_elements - 1) / kernel.unit_elements;
  const int64_t panel_bytes = units * kernel.unit_bytes, row_bytes = a8_row_bytes(args.cols);
  const int64_t terms = args.two_terms ? 2 : 1, m = args.m * terms;  // a pass holds both rows of a pair
  // Passes of nearly the same length, of rows that stay in the second-level cache.
  const int64_t fitting = kRowChunkBytes / row_bytes;
  const int64_t most = fitting < kMaxTileRows ? kMaxTileRows : fitting > kPassRows ? kPassRows : fitting & ~int64_t{1};
  const int64_t passes = (m + most - 1) / most, pass_rows = (m + 2 * passes - 1) / (2 * passes) * 2;
  alignas(64) float acc[kMaxPanels * kPassRows * kPanelRows];
  for (int64_t first = 0; first < m; first += pass_rows) {
    const int64_t rows = m - first < pass_rows ? m - first : pass_rows;
    const int64_t together = panels_together(rows);
    for (int64_t panel = panel_begin; panel < panel_end;) {
      const int64_t panels = panel_end - panel < together ? 1 : together;
      const uint8_t* weights = args.packed + panel * panel_bytes;
      kernel.multiply({weights, panel_bytes, units, args.a8 + first * row_bytes, row_bytes, rows}, panels, acc);
      for (int64_t p = 0; p < panels; ++p) {
        float* sums = acc + kPanelRows * rows * p;
        if (args.two_terms) add_pairs(sums, rows / 2);
        finish_tile(args, panel + p, first / terms, rows / terms, sums);
      }
      panel += panels;
    }
  }
}

}  // namespace puna::PUNA_NS
