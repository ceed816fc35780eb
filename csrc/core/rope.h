// Rotary angles: which frequencies a request has, and the cosines and sines of its positions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fields.h"
#include "kernel_table.h"

namespace puna {


// kind "fixed": inv_freq float32 [rot_dim / 2], attention_factor.
// kind "longrope": short_inv_freq and long_inv_freq, original_max_position, attention_factor; the long ones for
//   requests longer than the original length.
// kind "dynamic": theta, factor, original_max_position, rot_dim, attention_factor; with L = max(length, original),
//   base = theta * (factor * L / original - (factor - 1)) ** (rot_dim / (rot_dim - 2)),
//   inv_freq[j] = float32(1 / base ** (2j / rot_dim)), all in float64.
class RopeSpec {
 public:
  // Throws std::invalid_argument.
  RopeSpec(const std::string& kind, const Fields& parameters);

  int64_t rot_dim() const { return 2 * half_; }
  float attention_factor() const { return attention_factor_; }

  // The inverse frequencies of a request of this length; `storage` holds them where they have to be computed.
  const float* frequencies(int64_t length, std::vector<float>& storage) const;

 private:
  enum class Kind : uint8_t { fixed, longrope, dynamic };
  Kind kind_ = Kind::fixed;
  int64_t half_ = 0;
  std::vector<float> inv_freq_, long_inv_freq_;
  int64_t original_max_position_ = 0;
  double theta_ = 0, factor_ = 0;
  float attention_factor_ = 1.0f;
};

// out[j] = float32(cos(a)) * factor and out[count + j] = float32(sin(a)) * factor, where a is
// float32(position) * inv_freq[j] in float32. Cosine and sine are computed in float64 by the same operations everywhere,
// so that the result does not depend on the machine's mathematics library.
void rope_angles(int64_t position, const float* inv_freq, int64_t count, float factor, float* out);

}  // namespace puna
