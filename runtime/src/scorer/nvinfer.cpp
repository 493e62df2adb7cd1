#include "nvinfer.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <mutex>

#if NV_TENSORRT_MAJOR < 10
#error "TensorRT 10 or newer is needed"
#endif
#define ODIN_TEXT_(value) #value
#define ODIN_TEXT(value) ODIN_TEXT_(value)

namespace odin::detail {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::ILogger;
using LongLong = long long;

constexpr const char* kSoname = "libnvinfer.so." ODIN_TEXT(NV_TENSORRT_MAJOR);

thread_local const Log* listener = nullptr;
thread_local char first_error[512] = "";

// Many of TensorRT's objects may be used by several threads, but not while they make others.
std::recursive_mutex making;  // a log's callback may open another scorer

// What TensorRT told of the call that failed.
const char* reason() { return first_error[0] == '\0' ? "it logged no reason" : first_error; }

class Logger : public ILogger {
 public:
  // Nothing may be thrown through TensorRT; what cannot be told for want of memory is not.
  void log(Severity severity, const char* text) noexcept override try {
    const bool error = severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR;
    if (error && first_error[0] == '\0') {
      snprintf(first_error, sizeof first_error, "%s", text);
      for (char& c : first_error) c = c == '\n' || c == '\r' ? ' ' : c;
    }
    if (listener == nullptr || severity == Severity::kVERBOSE) return;
    const bool told = error || severity == Severity::kWARNING;
    std::string line = std::string("TensorRT: ") + text;
    for (char& c : line) c = c == '\n' || c == '\r' ? ' ' : c;
    (*listener)(told ? ODIN_LOG_WARNING : ODIN_LOG_DEBUG, line);
  } catch (...) {
  }
};

// Never freed: TensorRT's own threads may use it to the end of the process.
ILogger& the_logger() {
  static ILogger* const logger = new Logger;
  return *logger;
}

// The functions of the library that no class has.
struct Library {
  void* (*create_runtime)(void* logger, int32_t version) = nullptr;
  std::string version, problem;
};

template <typename Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

Library load_library() {
  Library loaded;
  // The one that the process has or that the loader finds, before the one found when building.
  void* library = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL);
  const char* reason = library == nullptr ? dlerror() : nullptr;
  std::string problem = reason == nullptr ? "" : reason;
  if (library == nullptr && ODIN_TENSORRT_LIBRARY[0] != '\0') {
    library = dlopen(ODIN_TENSORRT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    loaded.problem = "TensorRT's library cannot be loaded: " + problem +
                     "; install TensorRT " ODIN_TEXT(NV_TENSORRT_MAJOR) ", or add the folder of " +
                     kSoname + " to LD_LIBRARY_PATH";
    return loaded;
  }
  loaded.create_runtime = function<void*(void*, int32_t)>(library, "createInferRuntime_INTERNAL");
  for (const char* name : {"getInferLibMajorVersion", "getInferLibMinorVersion",
                           "getInferLibPatchVersion", "getInferLibBuildVersion"}) {
    auto* const number = function<int32_t()>(library, name);
    if (number == nullptr || loaded.create_runtime == nullptr) {
      loaded.problem = std::string(kSoname) + " is not TensorRT's: it has no function " + name;
      return loaded;
    }
    loaded.version += (loaded.version.empty() ? "" : ".") + std::to_string(number());
  }
  return loaded;
}

const Library& the_library() {
  static const Library library = load_library();  // stays loaded to the end of the process
  if (!library.problem.empty()) fail(ODIN_NO_ENGINE, "%s", library.problem.c_str());
  return library;
}

std::string shape_text(const Dims& shape) {
  std::string text;
  for (int32_t i = 0; i < shape.nbDims; ++i) {
    text += (i == 0 ? "" : "x") + std::to_string(static_cast<LongLong>(shape.d[i]));
  }
  return text;
}

bool same_shape(const Dims& a, const Dims& b) {
  return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d);
}

bool varies(const Dims& shape) {
  return std::find(shape.d, shape.d + shape.nbDims, -1) != shape.d + shape.nbDims;
}

Range range(const Dims& least, const Dims& most, int32_t axis) {
  const auto plain = [](int64_t size) {
    return static_cast<int32_t>(std::min<int64_t>(size, INT32_MAX));
  };
  return {plain(least.d[axis]), plain(most.d[axis])};
}

}  // namespace

Listening::Listening(const Log& log) : before_(listener) {
  listener = &log;
  first_error[0] = '\0';
}

Listening::~Listening() { listener = before_; }

std::string tensorrt_version() { return the_library().version; }

bool same_version(const std::string& recorded, const std::string& loaded) {
  return recorded == loaded || recorded == loaded.substr(0, loaded.rfind('.'));
}

Plan::Plan(const std::string& content, std::string file, std::string remedy)
    : file_(std::move(file)), remedy_(std::move(remedy)) {
  const std::lock_guard<std::recursive_mutex> guard(making);
  first_error[0] = '\0';
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(
      the_library().create_runtime(&the_logger(), NV_TENSORRT_VERSION)));
  if (!runtime_) fail(ODIN_ENGINE_FAILED, "TensorRT does not start: %s", reason());
  engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
  if (!engine_) {
    fail(ODIN_ENGINE_FAILED,
         "TensorRT %s cannot open %s: %s; build it again on this machine with '%s'",
         tensorrt_version().c_str(), file_.c_str(), reason(), remedy_.c_str());
  }
  work_bytes_ = static_cast<size_t>(std::max<int64_t>(engine_->getDeviceMemorySizeV2(), 0));
  read_tensors();
  read_limits(raw() ? 3 : 1);
}

void Plan::read_tensors() {
  using nvinfer1::OptProfileSelector;
  for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    const Dims shape = engine_->getTensorShape(name);
    Dims least = shape, most = shape;
    if (input && varies(shape)) {
      least = engine_->getProfileShape(name, 0, OptProfileSelector::kMIN);
      most = engine_->getProfileShape(name, 0, OptProfileSelector::kMAX);
    }
    tensors_.push_back({name, input, engine_->getTensorDataType(name), shape, least, most});
  }
}

const Tensor& Plan::images() const {
  for (const Tensor& tensor : tensors_) {
    if (tensor.input && tensor.name == "images") return tensor;
  }
  fail(ODIN_ENGINE_FAILED, "%s has no input images; build it again with '%s'", file_.c_str(),
       remedy_.c_str());
}

void Plan::read_limits(int32_t channels_axis) {
  const Tensor& tensor = images();
  if (tensor.shape.nbDims != 4 || tensor.least.nbDims != 4 || tensor.most.nbDims != 4) {
    fail(ODIN_ENGINE_FAILED, "%s takes images of %s, not of four sizes; build it again with '%s'",
         file_.c_str(), shape_text(tensor.shape).c_str(), remedy_.c_str());
  }
  const int32_t height_axis = channels_axis == 3 ? 1 : 2;
  limits_ = {range(tensor.least, tensor.most, 0), range(tensor.least, tensor.most, height_axis),
             range(tensor.least, tensor.most, height_axis + 1)};
}

std::unique_ptr<nvinfer1::IExecutionContext> Plan::context() const {
  using nvinfer1::ExecutionContextAllocationStrategy;
  const std::lock_guard<std::recursive_mutex> guard(making);
  first_error[0] = '\0';
  std::unique_ptr<nvinfer1::IExecutionContext> context(
      engine_->createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
  if (!context) {
    fail(ODIN_NO_MEMORY,
         "no memory on the GPU to run %s (%s); free some, or build it for smaller batches with "
         "'%s --maxShapes=...'",
         file_.c_str(), reason(),
         remedy_.c_str());
  }
  return context;
}

Run::Run(const Plan& plan, void* work) : plan_(plan), context_(plan.context()) {
  context_->setDeviceMemoryV2(work, static_cast<int64_t>(plan.work_bytes()));
}

void Run::enqueue(const std::vector<Place>& places, const Dims& images, cudaStream_t stream) {
  const char* file = plan_.file().c_str();
  first_error[0] = '\0';
  const auto refused = [&](const std::string& what) {
    fail(ODIN_ENGINE_FAILED, "%s: %s: %s", file, what.c_str(),
         reason());
  };
  if (!same_shape(shape_, images)) {
    shape_ = Dims{};  // unknown, until it is set
    const bool fixed = !varies(plan_.images().shape);
    if (!fixed && !context_->setInputShape("images", images)) {
      refused("images of " + shape_text(images) + " are refused");
    }
    const char* unknown = nullptr;
    if (context_->inferShapes(1, &unknown) != 0) {
      refused(std::string("no shape is known of ") + (unknown == nullptr ? "a tensor" : unknown));
    }
    shape_ = images;
  }
  for (const Place& place : places) {
    if (!context_->setTensorAddress(place.name, place.address)) {
      refused(std::string("the address of ") + place.name + " is refused");
    }
  }
  if (!context_->enqueueV3(stream)) refused("it does not run");
}

}  // namespace odin::detail
