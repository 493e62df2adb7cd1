#include "parts.hpp"

#include <algorithm>

namespace odin::detail {

namespace {

constexpr int32_t kAtOnce = 4, kMostAtOnce = 64;
constexpr int64_t kHeldBytes = int64_t{64} << 20;
constexpr double kStreamBytes = 2.0 * (1 << 30);

}  // namespace

int32_t images_at_once(const Spec& spec, const std::string& precision) {
  int32_t most = kAtOnce;
  const int64_t bytes = spec.activation_bytes;
  while (bytes > 0 && most < kMostAtOnce && bytes <= kHeldBytes / (2 * most)) most *= 2;
  return precision == "bf16" ? 2 * most : most;  // half the bytes
}

int64_t fitting(const Spec& spec, int32_t batch_size, int64_t height, int64_t width) {
  if (spec.activation_bytes == 0) return batch_size;
  const double smallest = static_cast<double>(spec.height.least) * spec.width.least;
  const double larger = static_cast<double>(height) * static_cast<double>(width) / smallest;
  const double each = static_cast<double>(spec.activation_bytes) * std::max(larger, 1.0);
  const double most = kStreamBytes / each;
  return std::max<int64_t>(1, most < batch_size ? static_cast<int64_t>(most) : batch_size);
}

std::vector<Cut> cut(int64_t count, int64_t most) {
  std::vector<Cut> cuts;
  int64_t first = 0;
  while (first < count) {
    int64_t size = most;
    while (size > count - first) {
      // From the first size that does not fit on: the largest power of two that does.
      size = 1;
      while (2 * size <= count - first) size *= 2;
    }
    cuts.push_back({first, size});
    first += size;
  }
  return cuts;
}

std::vector<Part> parts_of(const Spec& spec, const Preparer& preparer, int32_t batch_size,
                           const odin_images& images, const Targets& targets) {
  const int64_t most = fitting(spec, batch_size, images.height, images.width);
  const auto from = [](auto* start, int64_t offset) {
    return start == nullptr ? nullptr : start + offset;
  };
  std::vector<Part> parts;
  for (const auto [first, count] : cut(images.count, most)) {
    const auto write = [&preparer, &images, first = first, count = count](void* target) {
      preparer.write(images, first, count, target);
    };
    parts.push_back({count, images.height, images.width, write, from(targets.score, first),
                     from(targets.baseline, first), from(targets.label, first),
                     from(targets.logits, first * spec.classes)});
  }
  return parts;
}

}  // namespace odin::detail
