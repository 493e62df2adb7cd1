// Device memory, page-locked host memory and copies, with bounds and lifetimes checked.
#include <sys/mman.h>

#include <cstring>

#include "double.hpp"

namespace odin_double {

constexpr size_t kRedZone = 256;
constexpr unsigned char kRed = 0xC5;
constexpr unsigned char kNew = 0xFF;    // as float, half or bfloat16: NaN
constexpr unsigned char kFreed = 0xFB;  // a large negative number

static Memory* containing(uintptr_t address) {
  auto& all = state().memory;
  auto next = all.upper_bound(address);
  if (next == all.begin()) return nullptr;
  Memory& memory = std::prev(next)->second;
  return address < memory.begin + memory.size ? &memory : nullptr;
}

std::string place(uintptr_t address) {
  const Memory* memory = containing(address);
  if (memory == nullptr) return "pageable";
  return text(memory->host ? "h" : "d", memory->id, "+", address - memory->begin);
}

bool reachable(uintptr_t address, const Context* from) {
  const Memory* memory = containing(address);
  return memory == nullptr || memory->host || memory->context == from;
}

// Red zones on both sides; what was freed is never used again, so that a late access is seen.
static uintptr_t allocate(size_t size, bool host) {
  auto* block = static_cast<unsigned char*>(
      mmap(nullptr, size + 2 * kRedZone, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (block == MAP_FAILED) return 0;
  std::memset(block, kRed, kRedZone);
  std::memset(block + kRedZone, kNew, size);
  std::memset(block + kRedZone + size, kRed, kRedZone);
  const auto begin = reinterpret_cast<uintptr_t>(block) + kRedZone;
  state().memory[begin] = Memory{state().next_id++, begin, size, host, false, current_context()};
  return begin;
}

static bool intact(const Memory& memory) {
  const auto* block = reinterpret_cast<const unsigned char*>(memory.begin);
  for (size_t i = 0; i < kRedZone; i++)
    if (block[memory.size + i] != kRed || *(block - 1 - i) != kRed) return false;
  return true;
}

void check_red_zones(const std::string& after) {
  for (const auto& [begin, memory] : state().memory) {
    if (memory.freed || intact(memory)) continue;
    record_error(text(after, ": wrote outside ", place(begin), " of ", memory.size, " bytes"));
    auto* block = reinterpret_cast<unsigned char*>(begin);
    std::memset(block - kRedZone, kRed, kRedZone);
    std::memset(block + memory.size, kRed, kRedZone);
  }
}

static CUresult release(const char* who, uintptr_t address, bool host) {
  if (capture_forbids(who)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || found->second.host != host) {
    record_error(text(who, ": not the start of an allocation"));
    return CUDA_ERROR_INVALID_VALUE;
  }
  Memory& memory = found->second;
  if (memory.freed) {
    record_error(text(who, ": double free of ", place(address)));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!is_current(memory.context, place(address))) return CUDA_ERROR_INVALID_VALUE;
  if (!intact(memory)) record_error(text(who, ": written outside ", place(address)));
  memory.freed = true;
  std::memset(reinterpret_cast<void*>(address), kFreed, memory.size);
  return CUDA_SUCCESS;
}

CUresult check_range(const char* who, Side side, uintptr_t address, size_t size) {
  const Memory* memory = containing(address);
  if (memory == nullptr) {
    if (side == Side::kHost) return CUDA_SUCCESS;  // pageable
    record_error(text(who, ": an address that is not device memory"));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (side == Side::kHost && !memory->host) {
    record_error(text(who, ": ", place(address), " is device memory, not host memory"));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (memory->freed) {
    record_error(text(who, ": use after free of ", place(address)));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (address + size > memory->begin + memory->size) {
    record_error(text(who, ": ", size, " bytes at ", place(address), " of ", memory->size));
    return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

struct Copy {
  Side to_side;
  uintptr_t to;
  Side from_side;
  uintptr_t from;
  size_t size;

  CUresult check(const char* who) const {
    const CUresult target = check_range(who, to_side, to, size);
    return target != CUDA_SUCCESS ? target : check_range(who, from_side, from, size);
  }

  CUresult run(const char* who) const {
    if (check(who) != CUDA_SUCCESS) return CUDA_ERROR_ILLEGAL_ADDRESS;  // freed in the meantime
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size);
    return CUDA_SUCCESS;
  }

  // Of these CUDA decides by itself when they wait for the host.
  bool pageable() const {
    return (to_side == Side::kHost && containing(to) == nullptr) ||
           (from_side == Side::kHost && containing(from) == nullptr);
  }

  std::string shown() const { return text("to=", place(to), " from=", place(from), " bytes=", size); }
};

static CUresult copy_later(const char* who, const Copy& copy, CUstream handle) {
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult wrong = copy.check(who); wrong != CUDA_SUCCESS) return wrong;
  if (copy.pageable()) record_error(text(who, ": from or to pageable memory"));
  Operation work;
  work.what = text("copy ", copy.shown());
  work.run = [copy, who](Lock&) { return copy.run(who); };
  return enqueue(*stream, std::move(work));
}

static CUresult copy_now(const char* who, const Copy& copy, Lock& lock) {
  if (capture_forbids(who)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (const CUresult wrong = copy.check(who); wrong != CUDA_SUCCESS) return wrong;
  const CUresult before = wait_for_all(true, lock);
  return before != CUDA_SUCCESS ? before : copy.run(who);
}

static uintptr_t number(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace odin_double

using namespace odin_double;

extern "C" {

CUresult cuMemAlloc(CUdeviceptr* pointer, size_t size) {
  ENTER("cuMemAlloc", "bytes=", size);
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  if (capture_forbids("cuMemAlloc")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *pointer = allocate(size, false);
  return *pointer != 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemFree(CUdeviceptr pointer) {
  ENTER("cuMemFree", place(pointer));
  if (pointer == 0) return CUDA_SUCCESS;
  if (state().options["free_waits"] != 0) wait_for_all(false, call.lock());
  return release("cuMemFree", pointer, false);
}

CUresult cuMemHostAlloc(void** pointer, size_t size, unsigned int flags) {
  ENTER("cuMemHostAlloc", "bytes=", size, " flags=", flags);
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  if (capture_forbids("cuMemHostAlloc")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *pointer = reinterpret_cast<void*>(allocate(size, true));
  return *pointer != nullptr ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAllocHost(void** pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }

CUresult cuMemFreeHost(void* pointer) {
  ENTER("cuMemFreeHost", place(number(pointer)));
  return pointer == nullptr ? CUDA_SUCCESS : release("cuMemFreeHost", number(pointer), true);
}

CUresult cuMemGetInfo(size_t* available, size_t* total) {
  ENTER("cuMemGetInfo", "");
  *available = *total = size_t{1} << 33;
  return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
  const Copy copy{Side::kDevice, to, Side::kHost, number(from), size};
  ENTER("cuMemcpyHtoDAsync", copy.shown(), " stream=", stream_name(stream));
  return copy_later("cuMemcpyHtoDAsync", copy, stream);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
  const Copy copy{Side::kHost, number(to), Side::kDevice, from, size};
  ENTER("cuMemcpyDtoHAsync", copy.shown(), " stream=", stream_name(stream));
  return copy_later("cuMemcpyDtoHAsync", copy, stream);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  const Copy copy{Side::kDevice, to, Side::kDevice, from, size};
  ENTER("cuMemcpyDtoDAsync", copy.shown(), " stream=", stream_name(stream));
  return copy_later("cuMemcpyDtoDAsync", copy, stream);
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
  const Copy copy{Side::kDevice, to, Side::kHost, number(from), size};
  ENTER("cuMemcpyHtoD", copy.shown());
  return copy_now("cuMemcpyHtoD", copy, call.lock());
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t size) {
  const Copy copy{Side::kHost, number(to), Side::kDevice, from, size};
  ENTER("cuMemcpyDtoH", copy.shown());
  return copy_now("cuMemcpyDtoH", copy, call.lock());
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream handle) {
  ENTER("cuMemsetD8Async", "to=", place(to), " bytes=", size, " stream=", stream_name(handle));
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Operation work;
  work.what = text("set to=", place(to), " bytes=", size);
  work.run = [to, value, size](Lock&) {
    const CUresult wrong = check_range("cuMemsetD8Async", Side::kDevice, to, size);
    if (wrong != CUDA_SUCCESS) return CUDA_ERROR_ILLEGAL_ADDRESS;
    std::memset(reinterpret_cast<void*>(to), value, size);
    return CUDA_SUCCESS;
  };
  return enqueue(*stream, std::move(work));
}

CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr pointer) {
  ENTER("cuPointerGetAttribute", "attribute=", int{attribute}, " of=", place(pointer));
  const std::string where = place(pointer);
  if (where == "pageable") return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    *static_cast<unsigned*>(out) = where[0] == 'h' ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
  else if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
    *static_cast<int*>(out) = containing(pointer)->context->device;
  else
    return CUDA_ERROR_NOT_SUPPORTED;
  return CUDA_SUCCESS;
}

// Of an address that CUDA does not know, all are null.
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** out,
                                CUdeviceptr pointer) {
  ENTER("cuPointerGetAttributes", "of=", place(pointer));
  const Memory* memory = containing(pointer);
  if (memory != nullptr && memory->freed) memory = nullptr;
  for (unsigned i = 0; i < count; i++) {
    if (attributes[i] == CU_POINTER_ATTRIBUTE_CONTEXT)
      *static_cast<const Context**>(out[i]) = memory == nullptr ? nullptr : memory->context;
    else if (attributes[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
      *static_cast<unsigned*>(out[i]) = memory == nullptr ? 0
                                        : memory->host    ? CU_MEMORYTYPE_HOST
                                                          : CU_MEMORYTYPE_DEVICE;
    else if (attributes[i] == CU_POINTER_ATTRIBUTE_IS_MANAGED)
      *static_cast<bool*>(out[i]) = false;
    else if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
      *static_cast<int*>(out[i]) = memory == nullptr ? -2 : memory->context->device;
    else
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

}  // extern "C"
