// What images have to be, and how raw ones become the network's.
#pragma once

#include <stdint.h>

#include <array>
#include <vector>

#include "bundle.hpp"
#include "odin/odin.h"

namespace odin::detail {

// A Failure unless the network takes images of this type and size, or there are none of a size.
void check_images(const odin_images& images, const Spec& spec);

size_t element_bytes(odin_image_type type);

// Writes images as the network takes them.
class Preparer {
 public:
  explicit Preparer(const Spec& spec);

  // Images `first` to `first + count` of checked ones, to where there is room for them.
  void write(const odin_images& images, int64_t first, int64_t count, void* target) const;

 private:
  // Normalised value of each pixel value of each channel: (pixel / 255 - mean) / std, each step
  // rounded to float32, as runtime/odin_runtime/images.py has it.
  std::vector<std::array<float, 256>> values_;
  bool raw_;  // whether the network takes raw images
};

// Whether image `index` is of finite values alone.
bool is_finite(const odin_images& images, int64_t index);

}  // namespace odin::detail
