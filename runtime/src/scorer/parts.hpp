// Cutting batches into parts that engines compute fastest, as odin_engines' engine.py and
// batches.py: an engine that compiles a graph for each size of a part then meets few.
#pragma once

#include <stdint.h>

#include <vector>

#include "bundle.hpp"

namespace odin::detail {

// The most images of a part that OpenVINO is fastest with.
int32_t images_at_once(const Spec& spec, const std::string& precision);

// The most images of a part, of `batch_size`, whose activations take not too much memory.
int64_t fitting(const Spec& spec, int32_t batch_size, int64_t height, int64_t width);

struct Cut {
  int64_t first, count;
};

// `count` images in parts of `most`, and what is left in powers of two.
std::vector<Cut> cut(int64_t count, int64_t most);

}  // namespace odin::detail
