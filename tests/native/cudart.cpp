// Stands for CUDA's runtime library below the launchers: gives each launch to a function of the
// test's. What launch.o and nvcc's stubs of the kernels call, and no more.
#include <stddef.h>

#include <map>
#include <string>

namespace {

struct Size {  // CUDA's dim3, cudaError_t is an int
  unsigned x, y, z;
};

using OnLaunch = int (*)(const char* kernel, const unsigned* shape, void** parameters,
                         size_t shared_bytes, void* stream);

std::map<const void*, std::string>& kernels() {  // host function -> name on the device
  static std::map<const void*, std::string> names;
  return names;
}

OnLaunch on_launch = nullptr;
int last_error = 0;

}  // namespace

extern "C" {

void test_on_launch(OnLaunch function) { on_launch = function; }

int cudaLaunchKernel(const void* function, Size grid, Size block, void** parameters,
                     size_t shared_bytes, void* stream) {
  const unsigned shape[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  last_error =
      on_launch(kernels().at(function).c_str(), shape, parameters, shared_bytes, stream);
  return last_error;
}

int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}

int test_last_error() { return last_error; }

const char* cudaGetErrorName(int error) { return error == 700 ? "cudaErrorIllegalAddress" : "?"; }

const char* cudaGetErrorString(int error) { return error == 700 ? "an address" : "?"; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  kernels()[function] = name;
}

// In the stubs that `kernel<<<...>>>` would call, which nothing does.
void __cudaPopCallConfiguration() { __builtin_trap(); }
void __cudaGetKernel() { __builtin_trap(); }
void __cudaLaunchKernel() { __builtin_trap(); }

}  // extern "C"
