#include "decision.hpp"

#include <math.h>

#include <algorithm>

#include "failure.hpp"

namespace odin::detail {

namespace {

// The share of the calibration's images below a value, interpolated between the quantiles: where
// several equal it the last one counts.
double share_below(const std::vector<double>& quantiles, double value) {
  const auto above = std::upper_bound(quantiles.begin(), quantiles.end(), value);
  if (above == quantiles.begin()) return 0;
  if (above == quantiles.end()) return 1;
  const auto below = above - 1;
  const auto index = static_cast<double>(below - quantiles.begin());
  const double part = (value - *below) / (*above - *below);
  return (index + part) / static_cast<double>(quantiles.size() - 1);
}

float percentile(const Calibration& known, float score) {
  if (isnan(score)) return NAN;
  const auto images = static_cast<double>(known.images);
  return static_cast<float>((1 + share_below(known.quantiles, score) * images) / (images + 1));
}

}  // namespace

bool is_calibrated(const Spec& spec) {
  const auto same = [](double a, double b) {
    return static_cast<float>(a) == static_cast<float>(b);
  };
  return spec.calibration && spec.calibration->method == spec.method &&
         same(spec.calibration->temperature, spec.temperature) &&
         same(spec.calibration->magnitude, spec.magnitude);
}

void check_calibrated(const Bundle& bundle, const char* asked) {
  if (is_calibrated(bundle.spec)) return;
  const char* path = bundle.path.c_str();
  const std::string folder = folder_argument(bundle.path);
  if (!bundle.spec.calibration) {
    fail(ODIN_UNSUPPORTED,
         "bundle %s is not calibrated, so there is nothing to find scores.%s with: run "
         "'odin-bench %s --calibrate IN_DATASET'",
         path, asked, folder.c_str());
  }
  fail(ODIN_UNSUPPORTED,
       "bundle %s was calibrated with another method, temperature or magnitude than it scores "
       "with: calibrate it again with 'odin-bench %s --calibrate IN_DATASET'",
       path, folder.c_str());
}

void decide(const Spec& spec, const float* score, int64_t count, const odin_scores& scores) {
  if (scores.is_ood != nullptr) {
    const auto threshold = static_cast<float>(spec.calibration->threshold);
    for (int64_t i = 0; i < count; ++i) scores.is_ood[i] = score[i] >= threshold ? 0 : 1;
  }
  if (scores.percentile == nullptr) return;
  for (int64_t i = 0; i < count; ++i) {
    scores.percentile[i] = percentile(*spec.calibration, score[i]);
  }
}

}  // namespace odin::detail
