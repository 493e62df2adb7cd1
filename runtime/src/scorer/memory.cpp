#include "memory.hpp"

#include <new>

namespace odin::detail {

namespace {

void* allocate(void*, size_t bytes, size_t alignment) {
  return ::operator new(bytes, std::align_val_t{alignment}, std::nothrow);
}

void deallocate(void*, void* memory, size_t) {
  ::operator delete(memory, std::align_val_t{kAlignment});
}

}  // namespace

odin_allocator whole_allocator(const odin_allocator& given) {
  if (given.allocate == nullptr && given.deallocate == nullptr) {
    return {nullptr, allocate, deallocate};
  }
  if (given.allocate == nullptr || given.deallocate == nullptr) {
    fail(ODIN_NULL_POINTER, "options.allocator has one of its two functions; give both or neither");
  }
  return given;
}

}  // namespace odin::detail
