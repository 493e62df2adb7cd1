// Version, status texts and the last error of each thread.
#include <stdarg.h>
#include <stdio.h>

#include "enqueue.hpp"

namespace {

thread_local char last_error[256] = "";

}  // namespace

namespace odin {

odin_status fail(odin_status status, const char* function, const char* format, ...) {
  const int length = snprintf(last_error, sizeof last_error, "%s: ", function);
  va_list values;
  va_start(values, format);
  vsnprintf(last_error + length, sizeof last_error - static_cast<size_t>(length), format, values);
  va_end(values);
  return status;
}

}  // namespace odin

extern "C" {

int32_t odin_version(void) {
  return 10000 * ODIN_VERSION_MAJOR + 100 * ODIN_VERSION_MINOR + ODIN_VERSION_PATCH;
}

int32_t odin_has_cuda(void) { return odin::kHasCuda ? 1 : 0; }

const char* odin_last_error(void) { return last_error; }

const char* odin_status_text(odin_status status) {
  switch (status) {
    case ODIN_OK:
      return "success";
    case ODIN_NULL_POINTER:
      return "a pointer that must be given is null";
    case ODIN_MISALIGNED:
      return "a pointer is not at a multiple of its elements' size";
    case ODIN_BAD_SIZE:
      return "a size is negative, or too large, or there is no class";
    case ODIN_BAD_TYPE:
      return "the type is none of ODIN_F32, ODIN_F16, ODIN_BF16";
    case ODIN_BAD_VALUE:
      return "a number is outside its range";
    case ODIN_NO_CUDA:
      return "the library was built without nvcc: it holds the host functions alone";
    case ODIN_CUDA_FAILED:
      return "CUDA could not launch the kernel, or work before it failed";
    default:
      return "unknown status";
  }
}

}  // extern "C"
