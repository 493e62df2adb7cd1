// What follows from a score where a bundle is calibrated: as engines/odin_engines/calibration.py.
#pragma once

#include "bundle.hpp"
#include "odin/odin.h"

namespace odin::detail {

// Whether the threshold is for the scores of this bundle: those of another method, temperature or
// magnitude lie elsewhere.
bool is_calibrated(const Spec& spec);

// A Failure unless it is; `asked` is the result that needs it.
void check_calibrated(const Bundle& bundle, const char* asked);

// Write scores.is_ood and scores.percentile, where they are asked for, of `count` scores.
void decide(const Spec& spec, const float* score, int64_t count, const odin_scores& scores);

}  // namespace odin::detail
