// The double of TensorRT. A plan is a line of text:
//
//   plan KIND METHOD classes channels least most height height width width raw tunable further
//       temperature magnitude mean... std...
//
// KIND is fused, gradient or forward; the numbers before `raw` are the smallest and the largest
// batch, height and width. The network is one linear layer,
//   logits[k] = sum over i of x[i] ((31 i + 17 k) mod 13 - 6) / 256,
// of the normalised image's values in the order (C, H, W). Values that are not finite it takes for
// 0, as TensorRT may.
#include <NvInferRuntime.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include "double.hpp"

namespace {

using namespace nvinfer1;
using odin_double::count;
using odin_double::fails;
using odin_double::fault;

constexpr int64_t kWorkBytes = 1000;

ILogger* the_logger = nullptr;  // the first that was ever given, as TensorRT's

void tell(ILogger::Severity severity, const std::string& text) {
  the_logger->log(severity, text.c_str());
}

struct Network {
  std::string kind, method;
  int64_t classes = 0, channels = 0, least[3] = {}, most[3] = {};
  int raw = 0, tunable = 0, further = 0;
  double temperature = 1, magnitude = 0;
  std::vector<double> mean, std;
};

double weight(int64_t i, int64_t k) {
  return static_cast<double>((31 * i + 17 * k) % 13 - 6) / 256;
}

std::vector<double> logits_of(const Network& net, const std::vector<double>& x) {
  std::vector<double> logits(static_cast<size_t>(net.classes));
  for (size_t i = 0; i < x.size(); ++i) {
    for (int64_t k = 0; k < net.classes; ++k) {
      logits[static_cast<size_t>(k)] += x[i] * weight(static_cast<int64_t>(i), k);
    }
  }
  return logits;
}

std::vector<double> softmax(std::vector<double> logits, double temperature) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& each : logits) sum += each = std::exp((each - most) / temperature);
  for (double& each : logits) each /= sum;
  return logits;
}

// Of -log of the largest probability at the temperature.
std::vector<double> gradient_of(const Network& net, const std::vector<double>& logits, size_t size,
                                double temperature) {
  std::vector<double> seed = softmax(logits, temperature);
  seed[static_cast<size_t>(std::max_element(seed.begin(), seed.end()) - seed.begin())] -= 1;
  std::vector<double> gradient(size);
  for (size_t i = 0; i < size; ++i) {
    for (int64_t k = 0; k < net.classes; ++k) {
      gradient[i] += seed[static_cast<size_t>(k)] * weight(static_cast<int64_t>(i), k) /
                     temperature;
    }
  }
  return gradient;
}

// Tensors of one run, by name.
using Addresses = std::map<std::string, void*>;

// One image, normalised, as float32 values.
std::vector<double> image(const Network& net, const void* images, int64_t index, int64_t plane) {
  const int64_t size = plane * net.channels;
  std::vector<double> x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const auto c = static_cast<size_t>(i / plane);
    if (net.raw != 0) {
      const auto* pixels = static_cast<const uint8_t*>(images) + index * size;
      const double pixel = pixels[i % plane * net.channels + i / plane];
      x[static_cast<size_t>(i)] = (pixel / 255 - net.mean[c]) / net.std[c];
    } else {
      const float value = static_cast<const float*>(images)[index * size + i];
      x[static_cast<size_t>(i)] = std::isfinite(value) ? value : 0;
    }
  }
  return x;
}

float largest(const std::vector<double>& values) {
  return static_cast<float>(*std::max_element(values.begin(), values.end()));
}

void compute(const Network& net, Addresses at, const Dims& shape) {
  const auto* own = static_cast<const float*>(at["temperature"]);
  const auto* step = static_cast<const float*>(at["magnitude"]);
  const double temperature = own == nullptr ? net.temperature : *own;
  const double magnitude = step == nullptr ? net.magnitude : *step;
  const int64_t plane = net.raw != 0 ? shape.d[1] * shape.d[2] : shape.d[2] * shape.d[3];
  for (int64_t n = 0; n < shape.d[0]; ++n) {
    std::vector<double> x = image(net, at["images"], n, plane);
    const std::vector<double> logits = logits_of(net, x);
    std::copy(logits.begin(), logits.end(), static_cast<float*>(at["logits"]) + n * net.classes);
    if (net.kind == "forward") continue;
    const auto gradient = gradient_of(net, logits, x.size(), temperature);
    if (net.kind == "gradient") {
      auto* const target = static_cast<float*>(at["input_gradient"]);
      std::copy(gradient.begin(), gradient.end(), target + n * static_cast<int64_t>(x.size()));
      continue;
    }
    double grown = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double std = net.std[i / static_cast<size_t>(plane)];
      grown += std::fabs(gradient[i]) / std;
      x[i] -= magnitude / std * (gradient[i] < 0 ? -1 : 1);
    }
    const float exact = largest(softmax(logits_of(net, x), temperature));
    const float first =
        largest(softmax(logits, temperature)) * static_cast<float>(std::exp(magnitude * grown));
    static_cast<float*>(at["score"])[n] = net.method == "exact" ? exact : first;
    static_cast<float*>(at["baseline"])[n] = largest(softmax(logits, 1));
    static_cast<int64_t*>(at["label"])[n] =
        std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (net.further > 1) static_cast<float*>(at["second"])[n] = 8;
    if (net.further != 0) static_cast<float*>(at["further"])[n] = 7;
  }
}

struct Named {
  const char* name;
  TensorIOMode mode;
  DataType type;
  Dims shape;
};

int current() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

class Context : public IExecutionContext {
 public:
  Context(const Network& network, const std::vector<Named>& tensors)
      : network_(network), tensors_(tensors), device_(current()) {
    count(1);
  }
  ~Context() noexcept override {
    if (current() != device_) fault("a context is freed while another device is current");
    count(-1);
  }

  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
    if (size != kWorkBytes) fault("memory of another size than asked for");
    work_ = memory;
  }

  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    const int axes[] = {0, network_.raw != 0 ? 1 : 2, network_.raw != 0 ? 2 : 3};
    bool taken = strcmp(name, "images") == 0 && dims.nbDims == 4;
    for (int i = 0; i < 3; ++i) {
      taken = taken && dims.d[axes[i]] >= network_.least[i] && dims.d[axes[i]] <= network_.most[i];
    }
    if (!taken) tell(ILogger::Severity::kERROR, "a shape out of the profile");
    shape_ = dims;
    return taken;
  }

  int32_t inferShapes(int32_t, char const** names) noexcept override {
    if (shape_.nbDims != 4) fault("shapes follow from none");
    if (!fails("inferShapes")) return 0;
    *names = "score";
    return 1;
  }

  bool setTensorAddress(char const* name, void* data) noexcept override {
    if (reinterpret_cast<uintptr_t>(data) % 256 != 0) fault(std::string("crooked: ") + name);
    if (odin_double::device_of(data, 1) != device_) fault(std::string("not its device: ") + name);
    const auto same = [&](const Named& each) { return strcmp(each.name, name) == 0; };
    if (std::none_of(tensors_.begin(), tensors_.end(), same)) {
      tell(ILogger::Severity::kERROR, "no such tensor");
      return false;
    }
    addresses_[name] = data;
    return true;
  }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (stream == nullptr) fault("the default stream");
    if (odin_double::device_of(work_, kWorkBytes) != device_) fault("no memory to work in");
    if (odin_double::device_of(stream) != device_) fault("a stream of another device");
    // libodin's lanes each have one.
    if (stream_ != nullptr && stream_ != stream) fault("a context is used on two streams");
    stream_ = stream;
    for (const Named& tensor : tensors_) {
      if (addresses_.count(tensor.name) == 0) fault(std::string("no address of ") + tensor.name);
      for (const Named& other : tensors_) {
        if (&other == &tensor || addresses_[other.name] != addresses_[tensor.name]) continue;
        fault(std::string("one place of ") + tensor.name + " and " + other.name);
      }
    }
    if (shape_.nbDims != 4) fault("images of no shape");
    if (fails("enqueueV3")) {
      tell(ILogger::Severity::kERROR, "Error Code 1: the double fails");
      return false;
    }
    tell(ILogger::Severity::kVERBOSE, "a run is queued");
    odin_double::launch(stream, [net = network_, at = addresses_, shape = shape_, work = work_] {
      memset(work, 0x5A, kWorkBytes);  // before and after: it holds nothing of anybody's
      compute(net, at, shape);
      memset(work, 0x5A, kWorkBytes);
    });
    return true;
  }

 private:
  const Network network_;
  const std::vector<Named>& tensors_;
  const int device_;
  void* work_ = nullptr;
  Dims shape_{};
  Addresses addresses_;
  cudaStream_t stream_ = nullptr;
};

class Engine : public ICudaEngine {
 public:
  explicit Engine(const Network& network) : network_(network), device_(current()) {
    const auto in = TensorIOMode::kINPUT, out = TensorIOMode::kOUTPUT;
    const Dims vector = {1, {-1}}, matrix = {2, {-1, network.classes}}, scalar = {0, {}};
    const Dims raw = {4, {-1, -1, -1, network.channels}};
    const Dims planes = {4, {-1, network.channels, -1, -1}};
    const auto float32 = DataType::kFLOAT;
    tensors_ = {{"images", in, network.raw != 0 ? DataType::kUINT8 : float32,
                 network.raw != 0 ? raw : planes},
                {"logits", out, float32, matrix}};
    const auto& kind = network.kind;
    if (kind == "gradient") tensors_.push_back({"input_gradient", out, float32, planes});
    if (network.tunable != 0 && kind != "forward") {
      tensors_.push_back({"temperature", in, float32, scalar});
    }
    if (network.tunable != 0 && kind == "fused") {
      tensors_.push_back({"magnitude", in, float32, scalar});
    }
    if (kind == "fused") {
      tensors_.push_back({"score", out, float32, vector});
      tensors_.push_back({"baseline", out, float32, vector});
      tensors_.push_back({"label", out, DataType::kINT64, vector});
    }
    if (network.further != 0) tensors_.push_back({"further", out, float32, vector});
    if (network.further > 1) tensors_.push_back({"second", out, float32, vector});
    count(1);
  }
  ~Engine() noexcept override {
    if (current() != device_) fault("an engine is freed while another device is current");
    count(-1);
  }

  int64_t getDeviceMemorySizeV2() const noexcept override { return kWorkBytes; }
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors_.size()); }
  char const* getIOTensorName(int32_t index) const noexcept override {
    return tensors_[static_cast<size_t>(index)].name;
  }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override { return find(name).mode; }
  Dims getTensorShape(char const* name) const noexcept override { return find(name).shape; }
  DataType getTensorDataType(char const* name) const noexcept override { return find(name).type; }

  Dims getProfileShape(char const* name, int32_t profile,
                       OptProfileSelector select) const noexcept override {
    if (profile != 0 || strcmp(name, "images") != 0) fault("no such profile");
    const int64_t* sizes = select == OptProfileSelector::kMIN ? network_.least : network_.most;
    if (network_.raw != 0) return {4, {sizes[0], sizes[1], sizes[2], network_.channels}};
    return {4, {sizes[0], network_.channels, sizes[1], sizes[2]}};
  }

  IExecutionContext* createExecutionContext(
      ExecutionContextAllocationStrategy strategy) noexcept override {
    if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) fault("memory of its own");
    if (!fails("createExecutionContext")) return new Context(network_, tensors_);
    tell(ILogger::Severity::kERROR, "OutOfMemory");
    return nullptr;
  }

 private:
  const Named& find(const char* name) const {
    for (const Named& tensor : tensors_) {
      if (strcmp(tensor.name, name) == 0) return tensor;
    }
    fault(std::string("no tensor ") + name);
    return tensors_.front();
  }

  const Network network_;
  const int device_;
  std::vector<Named> tensors_;
};

class Runtime : public IRuntime {
 public:
  Runtime() { count(1); }
  ~Runtime() noexcept override { count(-1); }

  ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept override {
    std::istringstream text(std::string(static_cast<const char*>(blob), size));
    std::string plan;
    Network net;
    text >> plan >> net.kind >> net.method >> net.classes >> net.channels;
    for (int i = 0; i < 3; ++i) text >> net.least[i] >> net.most[i];
    text >> net.raw >> net.tunable >> net.further >> net.temperature >> net.magnitude;
    for (auto* each : {&net.mean, &net.std}) {
      each->resize(static_cast<size_t>(std::max<int64_t>(net.channels, 0)));
      for (double& value : *each) text >> value;
    }
    if (plan == "plan" && text) return new Engine(net);
    tell(ILogger::Severity::kERROR, "Error Code 1: Serialization\n(the version tag is another)");
    tell(ILogger::Severity::kERROR, "a second error, which follows from the first");
    return nullptr;
  }
};

}  // namespace

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  static const bool kept = (the_logger = static_cast<ILogger*>(logger), true);
  if (!kept || logger != the_logger) fault("another logger than the process's first");
  if (version != NV_TENSORRT_VERSION) fault("another version of the header");
  return fails("createInferRuntime") ? nullptr : static_cast<IRuntime*>(new Runtime);
}

int32_t getInferLibMajorVersion() noexcept { return 99; }
int32_t getInferLibMinorVersion() noexcept { return 1; }
int32_t getInferLibPatchVersion() noexcept { return 2; }
int32_t getInferLibBuildVersion() noexcept { return 3; }

}  // extern "C"
