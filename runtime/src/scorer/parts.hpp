// Cutting batches into parts that engines compute fastest, as odin_engines' engine.py and
// batches.py: an engine that compiles a graph for each size of a part then meets few.
#pragma once

#include <stdint.h>

#include <functional>
#include <vector>

#include "images.hpp"
#include "session.hpp"

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

// Some images of a batch: how the graph's input is written, and where results go (null: nowhere).
struct Part {
  int64_t count, height, width;
  std::function<void(void*)> write_images;
  float* score;
  float* baseline;
  int64_t* label;
  float* logits;  // (count, classes)
};

// A batch in parts of `batch_size` images, or fewer where they take too much memory.
std::vector<Part> parts_of(const Spec& spec, const Preparer& preparer, int32_t batch_size,
                           const odin_images& images, const Targets& targets);

}  // namespace odin::detail
