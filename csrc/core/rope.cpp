#include "rope.h"

#include <algorithm>
#include <cmath>

#include "text.h"

namespace puna {
namespace {

constexpr int64_t kMaxPosition = int64_t{1} << 31;

struct SinCos {
  double sine, cosine;
};

// Taylor series; for |r| <= pi/4 the first term left out is below 2**-60.
double sine_near_zero(double r) {
  const double z = r * r;
  double sum = 1.0 / 355687428096000.0;  // 17!
  sum = sum * z - 1.0 / 1307674368000.0;
  sum = sum * z + 1.0 / 6227020800.0;
  sum = sum * z - 1.0 / 39916800.0;
  sum = sum * z + 1.0 / 362880.0;
  sum = sum * z - 1.0 / 5040.0;
  sum = sum * z + 1.0 / 120.0;
  sum = sum * z - 1.0 / 6.0;
  return r + r * z * sum;
}

double cosine_near_zero(double r) {
  const double z = r * r;
  double sum = 1.0 / 20922789888000.0;  // 16!
  sum = sum * z - 1.0 / 87178291200.0;
  sum = sum * z + 1.0 / 479001600.0;
  sum = sum * z - 1.0 / 3628800.0;
  sum = sum * z + 1.0 / 40320.0;
  sum = sum * z - 1.0 / 720.0;
  sum = sum * z + 1.0 / 24.0;
  return 1.0 - 0.5 * z + z * z * sum;
}

// pi/2 = kHigh + kMiddle + kLow. The first two have 33 significant bits, so that their products with a quadrant below
// 2**20 are exact.
constexpr double kHigh = 0x1.921fb544p+0, kMiddle = 0x1.0b4611a6p-34, kLow = 0x1.3198a2e037073p-69;

SinCos sin_cos(double angle) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer
  if (!(std::fabs(angle) < 1e6)) return {std::sin(angle), std::cos(angle)};
  const double quadrant = (angle * kTwoOverPi + kMagic) - kMagic;
  const double r = ((angle - quadrant * kHigh) - quadrant * kMiddle) - quadrant * kLow;
  const double s = sine_near_zero(r), c = cosine_near_zero(r);
  switch (static_cast<int64_t>(quadrant) & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

std::vector<float> read_frequencies(FieldReader& fields, const std::string& name) {
  std::vector<float> values = fields.floats(name);
  if (values.empty() || values.size() > kMaxHeadDim / 2) {
    invalid(fields.owner(), ": field '", name, "' must hold 1 to ", kMaxHeadDim / 2, " values, got ", values.size());
  }
  return values;
}

double read_positive(FieldReader& fields, const std::string& name) {
  const double value = fields.number(name);
  if (value <= 0) invalid(fields.owner(), ": field '", name, "' must be positive, got ", value);
  return value;
}

}  // namespace

RopeSpec::RopeSpec(const std::string& kind, const Fields& parameters) {
  FieldReader fields("rope '" + kind + "'", parameters);
  if (kind == "fixed") {
    inv_freq_ = read_frequencies(fields, "inv_freq");
  } else if (kind == "longrope") {
    kind_ = Kind::longrope;
    inv_freq_ = read_frequencies(fields, "short_inv_freq");
    long_inv_freq_ = read_frequencies(fields, "long_inv_freq");
    if (inv_freq_.size() != long_inv_freq_.size()) {
      invalid(fields.owner(), ": short_inv_freq has ", inv_freq_.size(), " values, long_inv_freq ",
              long_inv_freq_.size());
    }
    original_max_position_ = fields.integer("original_max_position", 1, kMaxPosition);
  } else if (kind == "dynamic") {
    kind_ = Kind::dynamic;
    theta_ = read_positive(fields, "theta");
    factor_ = read_positive(fields, "factor");
    original_max_position_ = fields.integer("original_max_position", 1, kMaxPosition);
    const int64_t rot_dim = fields.integer("rot_dim", 4, kMaxHeadDim);
    if (rot_dim % 2 != 0) invalid(fields.owner(), ": field 'rot_dim' must be even, got ", rot_dim);
    inv_freq_.resize(static_cast<size_t>(rot_dim / 2));
  } else {
    invalid("unknown rope kind '", kind, "'; there is: fixed, longrope, dynamic");
  }
  attention_factor_ = static_cast<float>(fields.number("attention_factor"));
  half_ = static_cast<int64_t>(inv_freq_.size());
  fields.finish();
}

const float* RopeSpec::frequencies(int64_t length, std::vector<float>& storage) const {
  if (kind_ == Kind::fixed) return inv_freq_.data();
  if (kind_ == Kind::longrope) {
    return length > original_max_position_ ? long_inv_freq_.data() : inv_freq_.data();
  }
  const double dim = static_cast<double>(rot_dim()), original = static_cast<double>(original_max_position_);
  const double effective = static_cast<double>(std::max(length, original_max_position_));
  const double stretch = factor_ * effective / original - (factor_ - 1);
  const double base = theta_ * std::pow(stretch, dim / (dim - 2));
  storage.resize(inv_freq_.size());
  for (size_t j = 0; j < storage.size(); ++j) {
    storage[j] = static_cast<float>(1.0 / std::pow(base, 2.0 * static_cast<double>(j) / dim));
  }
  return storage.data();
}

void rope_angles(int64_t position, const float* inv_freq, int64_t count, float factor, float* out) {
  const float at = static_cast<float>(position);
  for (int64_t j = 0; j < count; ++j) {
    const SinCos value = sin_cos(static_cast<double>(at * inv_freq[j]));
    out[j] = static_cast<float>(value.cosine) * factor;
    out[count + j] = static_cast<float>(value.sine) * factor;
  }
}

}  // namespace puna
