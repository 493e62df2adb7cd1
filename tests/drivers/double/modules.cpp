// Modules, libraries, kernels and launches.
//
// The double does not look into an image beyond its first bytes: which kernels it holds, and the
// sizes of their parameters, the test declares.
#include <algorithm>
#include <cstring>

#include "double.hpp"

namespace odin_double {

static bool is_image(const void* image) {
  const auto* bytes = static_cast<const unsigned char*>(image);
  const unsigned char fat[] = {0x50, 0xED, 0x55, 0xBA};
  if (std::memcmp(bytes, fat, 4) == 0 || std::memcmp(bytes, "\177ELF", 4) == 0) return true;
  return std::strstr(static_cast<const char*>(image), ".version") != nullptr;  // PTX is text
}

static CUresult load(const void* image, const Context* context, Module** out) {
  if (capture_forbids("loading a module")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!is_image(image)) return CUDA_ERROR_INVALID_IMAGE;
  auto* module = new Module{state().next_id++, context, {}};
  for (const auto& [name, sizes] : state().declared)
    module->functions[name] = std::make_unique<Function>(Function{name, sizes});
  state().modules.insert(module);
  *out = module;
  return CUDA_SUCCESS;
}

static CUresult unload(Module* module) {
  if (state().modules.erase(module) != 0) return CUDA_SUCCESS;
  record_error("a module was unloaded twice");
  return CUDA_ERROR_INVALID_HANDLE;
}

static CUresult find(Module* module, const char* name, Function** out) {
  if (state().modules.count(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  const auto found = module->functions.find(name);
  if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
  *out = found->second.get();
  return CUDA_SUCCESS;
}

static bool exists(const Function* function) {
  for (const Module* module : state().modules)
    for (const auto& [name, one] : module->functions)
      if (one.get() == function) return is_current(module->context, "kernel " + name);
  record_error("use of a kernel whose module is not loaded");
  return false;
}

static size_t aligned(size_t offset, size_t size) { return (offset + size - 1) / size * size; }

static size_t offset_of(const Function& function, size_t index) {
  size_t offset = 0;
  for (size_t i = 0; i < index; i++)
    offset = aligned(offset, function.parameters[i]) + function.parameters[i];
  return index < function.parameters.size() ? aligned(offset, function.parameters[index]) : offset;
}

using Bytes = std::vector<unsigned char>;

static CUresult pack(const Function& function, void** parameters, void** extra, Bytes* out) {
  const size_t count = function.parameters.size();
  out->assign(offset_of(function, count), 0);
  if (parameters != nullptr) {
    for (size_t i = 0; i < count; i++)
      std::memcpy(out->data() + offset_of(function, i), parameters[i], function.parameters[i]);
    return CUDA_SUCCESS;
  }
  const void* buffer = nullptr;
  size_t size = 0;
  for (void** item = extra; item != nullptr && *item != CU_LAUNCH_PARAM_END; item += 2) {
    if (*item == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = item[1];
    if (*item == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t*>(item[1]);
  }
  if (size != out->size()) {
    record_error(text(function.name, ": ", size, " bytes of parameters, not ", out->size()));
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (size != 0) std::memcpy(out->data(), buffer, size);
  return CUDA_SUCCESS;
}

static std::string hex(const Bytes& bytes) {
  std::string shown;
  for (unsigned char byte : bytes) {
    shown += "0123456789abcdef"[byte >> 4];
    shown += "0123456789abcdef"[byte & 15];
  }
  return shown.empty() ? "none" : shown;
}

static CUresult check_pointers(const Function& function, const Bytes& bytes,
                               const Context* context) {
  for (size_t i = 0; i < function.parameters.size(); i++) {
    if (function.parameters[i] != sizeof(uintptr_t)) continue;
    uintptr_t value = 0;
    std::memcpy(&value, bytes.data() + offset_of(function, i), sizeof value);
    if (place(value) == "pageable") continue;  // a number, or null
    const std::string who = text(function.name, " parameter ", i);
    if (check_range(who.c_str(), Side::kDevice, value, 0) != CUDA_SUCCESS)
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    if (reachable(value, context)) continue;
    record_error(text(who, ": ", place(value), " is memory of another context"));
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  return CUDA_SUCCESS;
}

struct Launch {
  const Function* function;
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared;
  Bytes bytes;
  const Context* context = current_context();

  std::string shown() const {
    return text(function->name, " grid=", grid[0], ",", grid[1], ",", grid[2], " block=", block[0],
                ",", block[1], ",", block[2], " shared=", shared);
  }

  CUresult run(Lock& lock) const {
    const CUresult wrong = check_pointers(*function, bytes, context);
    const LaunchCallback callback = state().on_launch;
    if (wrong != CUDA_SUCCESS || callback == nullptr) return wrong;
    lock.unlock();  // the callback may be Python's, and wait for a thread that waits for us
    const int result =
        callback(function->name.c_str(), grid, block, shared, bytes.data(), bytes.size());
    lock.lock();
    check_red_zones(function->name);
    return static_cast<CUresult>(result);
  }
};

static CUresult launch_later(Launch launch, CUstream handle, void** parameters, void** extra) {
  Stream* stream = find_stream(handle);
  if (stream == nullptr || !exists(launch.function)) return CUDA_ERROR_INVALID_HANDLE;
  for (int axis = 0; axis < 3; axis++)
    if (launch.grid[axis] == 0 || launch.block[axis] == 0) return CUDA_ERROR_INVALID_VALUE;
  if (launch.block[0] * launch.block[1] * launch.block[2] > 1024) return CUDA_ERROR_INVALID_VALUE;
  const CUresult packed = pack(*launch.function, parameters, extra, &launch.bytes);
  if (packed != CUDA_SUCCESS) return packed;
  state().log.push_back(text("parameters ", launch.function->name, " ", hex(launch.bytes)));
  Operation work;
  work.what = text("kernel ", launch.shown());
  work.run = [launch](Lock& lock) { return launch.run(lock); };
  return enqueue(*stream, std::move(work));
}

static CUresult attribute(CUfunction_attribute which, int* value) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

static CUresult parameter(const Function* function, size_t index, size_t* offset, size_t* size) {
  if (!exists(function)) return CUDA_ERROR_INVALID_HANDLE;
  if (index >= function->parameters.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = offset_of(*function, index);
  if (size != nullptr) *size = function->parameters[index];
  return CUDA_SUCCESS;
}

}  // namespace odin_double

using namespace odin_double;

extern "C" {

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER("cuModuleLoadData", "");
  return load(image, current_context(), reinterpret_cast<Module**>(module));
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned int count,
                            CUjit_option* options, void** values) {
  for (unsigned i = 0; i < count; i++)  // what nobody has written to is no text
    if (options[i] == CU_JIT_ERROR_LOG_BUFFER) std::memcpy(values[i], "\x84", 2);
  ENTER("cuModuleLoadDataEx", "");
  for (unsigned i = 0; i < count; i++) {  // the sizes of the logs, which stay empty
    if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES) values[i] = nullptr;
    if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) values[i] = nullptr;
  }
  return load(image, current_context(), reinterpret_cast<Module**>(module));
}

CUresult cuModuleUnload(CUmodule module) {
  ENTER("cuModuleUnload", "");
  return unload(reinterpret_cast<Module*>(module));
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER("cuModuleGetFunction", "name=", name);
  return find(reinterpret_cast<Module*>(module), name, reinterpret_cast<Function**>(function));
}

CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  ENTER_NEEDING(kInit, "cuLibraryLoadData", "");
  return load(code, nullptr, reinterpret_cast<Module**>(library));
}

CUresult cuLibraryUnload(CUlibrary library) {
  ENTER_NEEDING(kInit, "cuLibraryUnload", "");
  return unload(reinterpret_cast<Module*>(library));
}

CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  ENTER_NEEDING(kInit, "cuLibraryGetKernel", "name=", name);
  return find(reinterpret_cast<Module*>(library), name, reinterpret_cast<Function**>(kernel));
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  ENTER("cuKernelGetFunction", "");
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

CUresult cuKernelGetLibrary(CUlibrary* library, CUkernel kernel) {
  ENTER_NEEDING(kInit, "cuKernelGetLibrary", "");
  for (Module* module : state().modules)
    for (const auto& [name, one] : module->functions)
      if (one.get() == reinterpret_cast<Function*>(kernel))
        *library = reinterpret_cast<CUlibrary>(module);
  return CUDA_SUCCESS;
}

CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* size) {
  ENTER_NEEDING(kInit, "cuKernelGetParamInfo", "index=", index);
  return parameter(reinterpret_cast<Function*>(kernel), index, offset, size);
}

CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* size) {
  ENTER("cuFuncGetParamInfo", "index=", index);
  return parameter(reinterpret_cast<Function*>(function), index, offset, size);
}

CUresult cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel, CUdevice) {
  ENTER_NEEDING(kInit, "cuKernelGetAttribute", "which=", int{which});
  return attribute(which, value);
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  ENTER("cuFuncGetAttribute", "which=", int{which});
  return attribute(which, value);
}

// Deprecated; pycuda still calls it before a launch that gives the shape of the block again.
CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
  ENTER("cuFuncSetBlockShape", "block=", x, ",", y, ",", z);
  if (!exists(reinterpret_cast<Function*>(function))) return CUDA_ERROR_INVALID_HANDLE;
  return x > 0 && y > 0 && z > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream stream,
                        void** parameters, void** extra) {
  Launch launch{reinterpret_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, shared, {}};
  ENTER("cuLaunchKernel", launch.shown(), " stream=", stream_name(stream));
  return launch_later(std::move(launch), stream, parameters, extra);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters,
                          void** extra) {
  Launch launch{reinterpret_cast<Function*>(function),
                {config->gridDimX, config->gridDimY, config->gridDimZ},
                {config->blockDimX, config->blockDimY, config->blockDimZ},
                config->sharedMemBytes,
                {}};
  ENTER("cuLaunchKernel", launch.shown(), " stream=", stream_name(config->hStream));
  return launch_later(std::move(launch), config->hStream, parameters, extra);
}

}  // extern "C"
