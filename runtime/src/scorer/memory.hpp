// Memory of the caller's allocator.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <new>
#include <utility>

#include "failure.hpp"

namespace odin::detail {

// An allocator of which both functions are there: the caller's, or the C++ library's.
odin_allocator whole_allocator(const odin_allocator& given);

inline constexpr size_t kAlignment = 64;  // of a line of the cache, and of the widest instructions

// Bytes without a meaning, freed with this.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const odin_allocator& allocator, size_t bytes) : allocator_(allocator), bytes_(bytes) {
    memory_ = allocator_.allocate(allocator_.context, std::max<size_t>(bytes, 1), kAlignment);
    if (memory_ == nullptr) {
      fail(ODIN_NO_MEMORY, "there is no memory for %zu bytes of images", bytes);
    }
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (memory_ != nullptr) {
      allocator_.deallocate(allocator_.context, memory_, std::max<size_t>(bytes_, 1));
    }
  }

  void* data() const { return memory_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
  }

  odin_allocator allocator_{};
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace odin::detail
