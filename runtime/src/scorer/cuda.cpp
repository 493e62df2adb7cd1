#include "cuda.hpp"

#include <dlfcn.h>

namespace odin::detail {

namespace {

// The driver's own functions. Going back by cudaSetDevice would make a context on a device that the
// caller may never have used, and not bring back a context of the driver's.
struct Contexts {
  int (*get)(void**) = nullptr;
  int (*set)(void*) = nullptr;
};

const Contexts& contexts() {
  static const Contexts found = [] {
    Contexts made;
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver == nullptr) return made;
    made.get = reinterpret_cast<int (*)(void**)>(dlsym(driver, "cuCtxGetCurrent"));
    made.set = reinterpret_cast<int (*)(void*)>(dlsym(driver, "cuCtxSetCurrent"));
    return made.get != nullptr && made.set != nullptr ? made : Contexts{};
  }();
  return found;
}

}  // namespace

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) {
    fail(ODIN_NO_MEMORY,
         "%s: there is no memory left on the GPU, or no page-locked memory of the host; give a "
         "smaller options.batch_size or fewer options.streams, build the plans again with a "
         "smaller --maxShapes, or free what other processes hold (nvidia-smi lists them)",
         what);
  }
  fail(ODIN_CUDA_FAILED, "%s: %s (%s), which may be of earlier work on the device", what,
       cudaGetErrorString(error), cudaGetErrorName(error));
}

OnDevice::OnDevice(int device) {
  void* context = nullptr;
  if (contexts().get != nullptr && contexts().get(&context) == 0) {
    context_before_ = context;
  } else {
    check_cuda(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) before_ = -1;
  }
  check_cuda(cudaSetDevice(device), "making the device current");
}

OnDevice::~OnDevice() {
  if (context_before_) contexts().set(*context_before_);
  if (before_ >= 0 && cudaSetDevice(before_) != cudaSuccess) cudaGetLastError();
}

Stream new_stream() {
  cudaStream_t stream = nullptr;
  // Else each piece of work would wait for the legacy default stream, and that for it.
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return Stream(stream);
}

Event new_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return Event(event);
}

void* Device::allocate(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes),
             ("allocating " + std::to_string(bytes) + " bytes on the GPU").c_str());
  return memory;
}

void* Pinned::allocate(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, bytes),
             ("allocating " + std::to_string(bytes) + " page-locked bytes").c_str());
  return memory;
}

Gpu find_gpu(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    fail(ODIN_NO_ENGINE, "TensorRT needs a GPU, and CUDA finds none: %s; look at nvidia-smi",
         cudaGetErrorString(error));
  }
  if (device >= count) {
    fail(ODIN_NO_ENGINE, "options.device is %d, and CUDA finds %d; look at nvidia-smi and "
         "CUDA_VISIBLE_DEVICES", device, count);
  }
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "asking for the device's name");
  return {properties.name,
          std::to_string(properties.major) + "." + std::to_string(properties.minor),
          properties.major};
}

}  // namespace odin::detail
