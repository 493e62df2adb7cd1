// Initialisation, devices, contexts, names of errors, and the table of entry points.
#include <dlfcn.h>

#include <cstring>

#include "double.hpp"

namespace odin_double {

constexpr char kName[] = "odin test double, not a GPU";

static bool exists(CUdevice device) { return device >= 0 && device < state().options["devices"]; }

static int attribute(CUdevice_attribute which) {
  auto& options = state().options;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return static_cast<int>(options["major"]);
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return static_cast<int>(options["minor"]);
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return static_cast<int>(options["multiprocessors"]);
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    default: return 0;  // no memory pools, no peers, no clusters
  }
}

struct ErrorText {
  CUresult code;
  const char* name;
  const char* text;
};

#define ERROR(code, text) {code, #code, text}
constexpr ErrorText kErrors[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
          "the provided PTX was compiled with an unsupported toolchain."),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
          "system has unsupported display driver / cuda driver combination"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
          "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
          "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
          "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
          "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a "
                                     "capturing stream"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef ERROR

static const ErrorText* error_text(CUresult code) {
  for (const ErrorText& one : kErrors)
    if (one.code == code) return &one;
  return nullptr;
}

static CUresult push(Context* context) {
  context_stack().push_back(context);
  return CUDA_SUCCESS;
}

static bool alive(CUcontext handle) {
  auto* context = reinterpret_cast<Context*>(handle);
  if (state().contexts.count(context) != 0 && (!context->primary || context->retained > 0)) return true;
  record_error("use of a context that has been released");
  return false;
}

static CUcontext current() { return reinterpret_cast<CUcontext>(current_context()); }

}  // namespace odin_double

using namespace odin_double;

extern "C" {

CUresult cuInit(unsigned int) {
  ENTER_NEEDING(kNothing, "cuInit", "");
  if (forked()) return CUDA_ERROR_NOT_INITIALIZED;
  const auto error = static_cast<CUresult>(state().options["init_error"]);
  state().initialised = error == CUDA_SUCCESS;
  if (state().initialised) state().process = getpid();
  return error;
}

CUresult cuDriverGetVersion(int* version) {
  ENTER_NEEDING(kNothing, "cuDriverGetVersion", "");
  *version = static_cast<int>(state().options["driver_version"]);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  ENTER_NEEDING(kInit, "cuDeviceGetCount", "");
  *count = static_cast<int>(state().options["devices"]);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER_NEEDING(kInit, "cuDeviceGet", "ordinal=", ordinal);
  *device = ordinal;
  return exists(ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int room, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDeviceGetName", "device=", device);
  std::strncpy(name, kName, static_cast<size_t>(room));
  return exists(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDeviceGetUuid", "device=", device);
  std::memset(uuid, device, sizeof *uuid);
  return exists(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDeviceTotalMem", "device=", device);
  *bytes = size_t{1} << 33;
  return exists(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDeviceGetAttribute", "which=", int{which});
  if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  *value = attribute(which);
  return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDeviceComputeCapability", "");
  *major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  *minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return exists(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER_NEEDING(kInit, "cuDevicePrimaryCtxRetain", "device=", device);
  if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
  Context& primary = state().primary.try_emplace(device, Context{device, true, 0}).first->second;
  primary.retained++;
  state().contexts.insert(&primary);
  *context = reinterpret_cast<CUcontext>(&primary);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  ENTER_NEEDING(kInit, "cuDevicePrimaryCtxRelease", "device=", device);
  const auto found = state().primary.find(device);
  if (found == state().primary.end() || found->second.retained == 0) {
    record_error("the primary context was released more often than retained");
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  found->second.retained--;
  return CUDA_SUCCESS;
}

CUresult cuCtxCreate(CUcontext* context, CUctxCreateParams*, unsigned int, CUdevice device) {
  ENTER_NEEDING(kInit, "cuCtxCreate", "device=", device);
  auto* made = new Context{device, false, 1};
  state().contexts.insert(made);
  *context = reinterpret_cast<CUcontext>(made);
  return push(made);
}

CUresult cuCtxDestroy(CUcontext context) {
  ENTER_NEEDING(kInit, "cuCtxDestroy", "");
  state().contexts.erase(reinterpret_cast<Context*>(context));
  return CUDA_SUCCESS;
}

// Deprecated; pycuda still ends its contexts by it, and relies on its leaving them.
CUresult cuCtxDetach(CUcontext context) {
  ENTER_NEEDING(kInit, "cuCtxDetach", "");
  state().contexts.erase(reinterpret_cast<Context*>(context));
  if (current() == context) context_stack().pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  ENTER_NEEDING(kInit, "cuCtxGetCurrent", "");
  *context = current();
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  ENTER_NEEDING(kInit, "cuCtxSetCurrent", context != nullptr ? "a context" : "none");
  if (!context_stack().empty()) context_stack().pop_back();
  if (context == nullptr) return CUDA_SUCCESS;
  return alive(context) ? push(reinterpret_cast<Context*>(context)) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  ENTER_NEEDING(kInit, "cuCtxPushCurrent", "");
  return alive(context) ? push(reinterpret_cast<Context*>(context)) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  ENTER("cuCtxPopCurrent", "");
  if (context != nullptr) *context = current();
  context_stack().pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  ENTER("cuCtxGetDevice", "");
  *device = context_stack().back()->device;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
  ENTER("cuCtxSynchronize", "");
  if (capture_forbids("cuCtxSynchronize", true)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return wait_for_all(false, call.lock());
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  ENTER("cuCtxGetStreamPriorityRange", "");
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = 0;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  const ErrorText* found = error_text(error);
  *name = found != nullptr ? found->name : nullptr;
  return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  const ErrorText* found = error_text(error);
  *text = found != nullptr ? found->text : nullptr;
  return found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The double holds one version of each function, whichever is asked for: the header's newest.
CUresult cuGetProcAddress(const char* symbol, void** function, int, cuuint64_t,
                          CUdriverProcAddressQueryResult* status) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = nullptr;
  for (const char* version : {"_v4", "_v3", "_v2", ""}) {
    *function = dlsym(self, (std::string(symbol) + version).c_str());
    if (*function != nullptr) break;
  }
  const bool found = *function != nullptr;
  if (status != nullptr)
    *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
