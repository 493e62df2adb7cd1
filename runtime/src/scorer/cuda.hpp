// What is used of the CUDA runtime: memory, streams and events, each freed with its object.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>

#include <optional>
#include <string>
#include <utility>

#include "failure.hpp"

namespace odin::detail {

inline constexpr size_t kDeviceAlignment = 256;  // of every tensor: TensorRT asks for it

// A Failure if a call of CUDA failed; `what` says what was being done. CUDA's own memory of the
// error is cleared, so that no later call tells it again.
void check_cuda(cudaError_t error, const char* what);

// Makes a device current, and at the end what was before: that is the caller's affair.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  std::optional<void*> context_before_;  // a CUcontext, which may be none
  int before_ = -1;                      // where the driver does not tell it
};

// A handle that is moved, never copied, and freed by `Free`, whose failure nobody can act on.
template <typename Handle, cudaError_t (*Free)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr && Free(handle_) != cudaSuccess) cudaGetLastError();
  }

  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

inline cudaError_t free_stream(cudaStream_t stream) { return cudaStreamDestroy(stream); }
inline cudaError_t free_event(cudaEvent_t event) { return cudaEventDestroy(event); }

using Stream = Owned<cudaStream_t, free_stream>;
using Event = Owned<cudaEvent_t, free_event>;

Stream new_stream();
Event new_event();

// Bytes without a meaning: `Device`'s on the device, `Pinned`'s of the host and page-locked, so
// that copies to and from the device need no other memory and no wait.
template <typename Memory>
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t bytes) : memory_(bytes > 0 ? Memory::allocate(bytes) : nullptr) {}

  template <typename T>
  T* as(size_t offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.get()) + offset);
  }
  void* data() const { return memory_.get(); }

 private:
  Owned<void*, Memory::release> memory_;
};

struct Device {
  static void* allocate(size_t bytes);
  static cudaError_t release(void* memory) { return cudaFree(memory); }
};

struct Pinned {
  static void* allocate(size_t bytes);
  static cudaError_t release(void* memory) { return cudaFreeHost(memory); }
};

using DeviceBytes = Bytes<Device>;
using PinnedBytes = Bytes<Pinned>;

// A device as bundles know it.
struct Gpu {
  std::string name, compute_capability;  // "NVIDIA L4", "8.9"
  int major;
};

// A Failure of status ODIN_NO_ENGINE where there is no such device.
Gpu find_gpu(int device);

}  // namespace odin::detail
