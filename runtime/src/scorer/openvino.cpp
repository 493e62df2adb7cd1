// OpenVINO on the CPU.
//
// A graph is compiled for the sizes that it is given: OpenVINO then fuses the element-wise parts of
// the backward pass, which it does not for sizes that may change. After many sizes, one that comes
// once goes to a graph that takes any.
#include <openvino/runtime/core.hpp>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>

#include "cores.hpp"
#include "failure.hpp"
#include "images.hpp"
#include "parts.hpp"
#include "session.hpp"

namespace odin::detail {

namespace {

constexpr size_t kMostSizes = 12;
constexpr int64_t kMostBytes = int64_t{2} << 30;  // of weights, which each size has anew
constexpr int64_t kIdleCalls = 100;  // without which a size keeps its graph when there is no room
constexpr size_t kRemembered = 64;   // sizes that came once

using Sizes = std::array<int64_t, 3>;  // count, height, width
constexpr Sizes kAny = {0, 0, 0};

// The process's only core, which is never freed. The CPU plugin of a core gives the thread a stack
// for signals, and puts the one before in its place when it is freed. Of two cores freed in the
// order they were made, the second puts back the first one's, which is gone: the next signal then
// ends the process.
ov::Core& the_core() {
  static auto* core = new ov::Core;
  return *core;
}

// What OpenVINO tells, on one line.
std::string one_line(const char* text) {
  std::string line;
  for (const char* c = text; *c != '\0'; ++c) {
    const bool space = *c == '\n' || *c == '\r' || *c == '\t' || *c == ' ';
    if (!space) {
      line += *c;
    } else if (!line.empty() && line.back() != ' ') {
      line += ' ';
    }
  }
  return line.substr(0, line.find_last_not_of(' ') + 1);
}

// Which of a graph's outputs is which.
struct Outputs {
  size_t score, baseline, label, logits;
};

struct Request {
  Buffer images;  // freed after the request, which reads it
  ov::InferRequest infer;
};

// A graph compiled for inputs of some size, and requests that are not at work.
struct Compiled {
  ov::CompiledModel model;
  Outputs outputs;
  std::mutex lock;
  std::vector<std::unique_ptr<Request>> idle;
};

// Room for a compiled graph, the lock of those who wait for it, and the call that used it.
struct Slot {
  std::mutex lock;
  std::shared_ptr<Compiled> compiled;
  int64_t used = 0;
};

// A request in use, and what has to outlive it. Work that was begun is waited for, whatever comes.
class Lease {
 public:
  explicit Lease(std::shared_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {
    const std::lock_guard<std::mutex> guard(compiled_->lock);
    if (compiled_->idle.empty()) {
      request_ = std::make_unique<Request>();
      request_->infer = compiled_->model.create_infer_request();
    } else {
      request_ = std::move(compiled_->idle.back());
      compiled_->idle.pop_back();
    }
  }
  Lease(Lease&& other) noexcept = default;
  Lease& operator=(Lease&& other) = delete;
  ~Lease() {
    if (!request_) return;
    try {
      if (begun_) request_->infer.wait();
      const std::lock_guard<std::mutex> guard(compiled_->lock);
      compiled_->idle.push_back(std::move(request_));
    } catch (...) {  // the call has failed already, or fails for want of memory: drop the request
      request_.reset();
    }
  }

  Request& request() { return *request_; }
  const Outputs& outputs() const { return compiled_->outputs; }

  void begin() {
    request_->infer.start_async();
    begun_ = true;
  }

  void wait() {
    begun_ = false;
    request_->infer.wait();
  }

 private:
  std::shared_ptr<Compiled> compiled_;
  std::unique_ptr<Request> request_;
  bool begun_ = false;
};

class OpenVinoSession : public Session {
 public:
  OpenVinoSession(Bundle& bundle, const SessionOptions& options);
  int32_t batch_size() const override { return options_.batch_size; }
  Range height() const override { return spec_.height; }
  Range width() const override { return spec_.width; }
  void score(const odin_images& images, const Targets& targets) override;
  void enqueue(const odin_images& images, const Targets& targets, void* stream) override;

 private:
  struct AtWork {
    Lease lease;
    const Part* part;
  };

  void run(const std::vector<Part>& parts);
  Lease begun(const Part& part);
  void finish(AtWork& work);
  std::shared_ptr<Compiled> compiled_for(const Sizes& sizes);
  std::shared_ptr<Slot> slot_for(Sizes& sizes);
  std::shared_ptr<Compiled> compile(const Sizes& sizes);
  ov::PartialShape shape(const Sizes& sizes) const;
  ov::AnyMap settings() const;
  void set_inputs(Request& request, const Part& part);
  [[noreturn]] void failed(const Sizes& sizes, const std::exception& error) const;

  const Spec spec_;
  const SessionOptions options_;
  const Preparer preparer_;
  const std::string file_;
  const size_t most_sizes_;
  std::shared_ptr<ov::Model> model_;
  bool hinted_ = false;  // whether OpenVINO is to make bfloat16 of a float32 graph
  std::mutex lock_;  // of what follows, and of copying the model
  std::map<Sizes, std::shared_ptr<Slot>> slots_;
  std::deque<Sizes> once_;
  int64_t calls_ = 0;
};

bool is_written(const ov::Model& model, const ov::element::Type& type) {
  for (const auto& op : model.get_ops()) {
    for (const auto& output : op->outputs()) {
      if (output.get_element_type() == type) return true;
    }
  }
  return false;
}

void check_bfloat16() {
  const auto found = the_core().get_property("CPU", ov::device::capabilities);
  if (std::find(found.begin(), found.end(), ov::device::capability::BF16) == found.end()) {
    fail(ODIN_UNSUPPORTED, "this CPU has no bfloat16 instructions: use ODIN_PRECISION_FP32");
  }
}

// How many sizes have graphs of their own, of a graph of so many bytes.
size_t most_sizes(const Bundle& bundle, const std::string& name) {
  const int64_t bytes = bundle.files.at(name).bytes.value_or(1);
  return std::min(kMostSizes, static_cast<size_t>(kMostBytes / std::max<int64_t>(bytes, 1)));
}

SessionOptions completed(const Bundle& bundle, SessionOptions options) {
  if (options.streams == 0) options.streams = 1;
  if (options.batch_size == 0) options.batch_size = images_at_once(bundle.spec, options.precision);
  return options;
}

OpenVinoSession::OpenVinoSession(Bundle& bundle, const SessionOptions& options)
    : spec_(bundle.spec),
      options_(completed(bundle, options)),
      preparer_(bundle.spec),
      file_(bundle.path + "/" + graph_for(bundle, "openvino")),
      most_sizes_(most_sizes(bundle, graph_for(bundle, "openvino"))) {
  const std::string graph = take_content(bundle, graph_for(bundle, "openvino"));
  if (options_.precision == "bf16") check_bfloat16();
  try {
    model_ = the_core().read_model(graph, ov::Tensor());
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    fail(ODIN_ENGINE_FAILED, "OpenVINO cannot open %s: %s", file_.c_str(),
         one_line(error.what()).c_str());
  }
  hinted_ = options_.precision == "bf16" && !is_written(*model_, ov::element::bf16);
}

void OpenVinoSession::failed(const Sizes& sizes, const std::exception& error) const {
  fail(ODIN_ENGINE_FAILED, "OpenVINO failed on %s, %lld images of %lld x %lld pixels: %s",
       file_.c_str(), static_cast<long long>(sizes[0]), static_cast<long long>(sizes[1]),
       static_cast<long long>(sizes[2]), one_line(error.what()).c_str());
}

void OpenVinoSession::score(const odin_images& images, const Targets& targets) {
  if (images.memory != ODIN_HOST || targets.memory != ODIN_HOST) {
    fail(ODIN_UNSUPPORTED, "images and scores on a device are for ODIN_ENGINE_TENSORRT, and this "
         "scorer is OpenVINO's: give memory of the host (ODIN_HOST)");
  }
  run(parts_of(spec_, preparer_, options_.batch_size, images, targets));
  // OpenVINO's Relu turns NaN into 0.
  for (int64_t i = 0; i < images.count; ++i) {
    if (is_finite(images, i)) continue;
    if (targets.score != nullptr) targets.score[i] = NAN;
    if (targets.baseline != nullptr) targets.baseline[i] = NAN;
  }
}

void OpenVinoSession::enqueue(const odin_images&, const Targets&, void*) {
  fail(ODIN_UNSUPPORTED, "queueing on a stream is for ODIN_ENGINE_TENSORRT, and this scorer is "
       "OpenVINO's: use odin_scorer_score");
}

// As many parts as there are streams are computed, and one more waits, so that no stream ever does.
void OpenVinoSession::run(const std::vector<Part>& parts) {
  std::deque<AtWork> at_work;
  for (const Part& part : parts) {
    at_work.push_back({begun(part), &part});
    if (at_work.size() > static_cast<size_t>(options_.streams)) {
      finish(at_work.front());
      at_work.pop_front();
    }
  }
  for (AtWork& work : at_work) finish(work);
}

Lease OpenVinoSession::begun(const Part& part) {
  const Sizes sizes = {part.count, part.height, part.width};
  try {
    Lease lease(compiled_for(sizes));
    set_inputs(lease.request(), part);
    part.write_images(lease.request().images.data());
    lease.begin();
    return lease;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    failed(sizes, error);
  }
}

// Give a request the memory for images of the part's size, which it keeps.
void OpenVinoSession::set_inputs(Request& request, const Part& part) {
  const bool raw = spec_.input_type == "uint8";
  const ov::Shape wanted = shape({part.count, part.height, part.width}).to_shape();
  const size_t bytes = ov::shape_size(wanted) * (raw ? 1 : sizeof(float));
  const bool first = request.images.data() == nullptr;
  if (first && spec_.tunable) {
    const std::pair<const char*, double> scalars[] = {{"temperature", spec_.temperature},
                                                      {"magnitude", spec_.magnitude}};
    for (const auto& [name, value] : scalars) {
      ov::Tensor scalar(ov::element::f32, ov::Shape{});
      *scalar.data<float>() = static_cast<float>(value);
      request.infer.set_tensor(name, scalar);
    }
  }
  if (first || request.images.bytes() != bytes) request.images = Buffer(options_.allocator, bytes);
  const auto type = raw ? ov::element::u8 : ov::element::f32;
  request.infer.set_tensor("images", ov::Tensor(type, wanted, request.images.data()));
}

// One output's rows, of a type that is the graph's; a Failure if they are not one an image.
ov::Tensor rows(Request& request, size_t index, const Part& part, const ov::element::Type& type,
                int64_t columns = 1) {
  const ov::Tensor found = request.infer.get_output_tensor(index);
  if (found.get_size() != static_cast<size_t>(part.count * columns)) {
    fail(ODIN_BAD_SIZE,
         "the graph gives %zu values for %lld images of %lld x %lld pixels, not %lld an image: the "
         "network does not take this size; resize or crop the images",
         found.get_size(), static_cast<long long>(part.count), static_cast<long long>(part.height),
         static_cast<long long>(part.width), static_cast<long long>(columns));
  }
  if (found.get_element_type() != type) {
    fail(ODIN_ENGINE_FAILED, "OpenVINO gives %s where the graph has %s",
         found.get_element_type().get_type_name().c_str(), type.get_type_name().c_str());
  }
  return found;
}

void OpenVinoSession::finish(AtWork& work) {
  const Part& part = *work.part;
  Request& request = work.lease.request();
  const Outputs& outputs = work.lease.outputs();
  try {
    work.lease.wait();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    failed({part.count, part.height, part.width}, error);
  }
  const auto count = static_cast<size_t>(part.count);
  const ov::Tensor score = rows(request, outputs.score, part, ov::element::f32);
  const ov::Tensor baseline = rows(request, outputs.baseline, part, ov::element::f32);
  const ov::Tensor label = rows(request, outputs.label, part, ov::element::i64);
  if (part.score != nullptr) memcpy(part.score, score.data(), count * sizeof(float));
  if (part.baseline != nullptr) memcpy(part.baseline, baseline.data(), count * sizeof(float));
  if (part.label != nullptr) memcpy(part.label, label.data(), count * sizeof(int64_t));
  if (part.logits != nullptr) {
    const ov::Tensor logits =
        rows(request, outputs.logits, part, ov::element::f32, spec_.classes);
    memcpy(part.logits, logits.data(), logits.get_byte_size());
  }
}

// The graph for these sizes. Who needs one that is being compiled waits for it, and nobody else.
std::shared_ptr<Compiled> OpenVinoSession::compiled_for(const Sizes& sizes) {
  Sizes key = sizes;
  std::shared_ptr<Slot> slot;
  {
    const std::lock_guard<std::mutex> guard(lock_);
    slot = slot_for(key);
  }
  const std::lock_guard<std::mutex> guard(slot->lock);
  if (!slot->compiled) {
    try {
      slot->compiled = compile(key);
    } catch (...) {
      const std::lock_guard<std::mutex> inner(lock_);
      const auto found = slots_.find(key);
      if (found != slots_.end() && found->second == slot) slots_.erase(found);
      throw;
    }
  }
  return slot->compiled;
}

// Room for the graph of these sizes, or where there is none left, of any sizes: `sizes` is kAny
// then. A size that comes again takes the place of one that has long not come.
std::shared_ptr<Slot> OpenVinoSession::slot_for(Sizes& sizes) {
  ++calls_;
  const size_t own = slots_.size() - slots_.count(kAny);
  if (slots_.count(sizes) == 0 && own >= most_sizes_) {
    auto oldest = slots_.end();
    for (auto each = slots_.begin(); each != slots_.end(); ++each) {
      const bool older = oldest == slots_.end() || each->second->used < oldest->second->used;
      if (each->first != kAny && older) oldest = each;
    }
    const bool idle = oldest != slots_.end() && calls_ - oldest->second->used > kIdleCalls;
    if (idle && std::find(once_.begin(), once_.end(), sizes) != once_.end()) {
      slots_.erase(oldest);
    } else {
      once_.push_back(sizes);
      if (once_.size() > kRemembered) once_.pop_front();
      sizes = kAny;
    }
  }
  std::shared_ptr<Slot>& slot = slots_[sizes];
  if (!slot) slot = std::make_shared<Slot>();
  slot->used = calls_;
  return slot;
}

ov::PartialShape OpenVinoSession::shape(const Sizes& sizes) const {
  const int64_t channels = spec_.channels;
  if (spec_.input_type == "uint8") return {sizes[0], sizes[1], sizes[2], channels};
  return {sizes[0], channels, sizes[1], sizes[2]};
}

ov::AnyMap OpenVinoSession::settings() const {
  ov::AnyMap settings = {{"INFERENCE_PRECISION_HINT", hinted_ ? "bf16" : "f32"},
                         {"NUM_STREAMS", std::to_string(options_.streams)}};
  if (options_.streams == 1) settings["PERFORMANCE_HINT"] = "LATENCY";
  const int32_t threads = threads_of(options_.threads);
  if (threads > 0) settings["INFERENCE_NUM_THREADS"] = std::to_string(threads);
  if (!options_.cache.empty()) {
    // OpenVINO's own key holds neither precision nor threads, which the content depends on.
    settings["CACHE_DIR"] = options_.cache + (hinted_ ? "/bf16-" : "/f32-") +
                            std::to_string(options_.streams) + "-" +
                            (threads > 0 ? std::to_string(threads) : "all");
  }
  return settings;
}

// The index of the output of this name.
size_t output_index(const ov::CompiledModel& model, const char* name) {
  const auto& outputs = model.outputs();
  for (size_t index = 0; index < outputs.size(); ++index) {
    // One that OpenVINO simplified away shares its tensor, which then has several names.
    if (outputs[index].get_names().count(name) != 0) return index;
  }
  fail(ODIN_DAMAGED, "the graph has no output %s; export the bundle again with odin-export", name);
}

std::shared_ptr<Compiled> OpenVinoSession::compile(const Sizes& sizes) {
  const auto start = std::chrono::steady_clock::now();
  std::shared_ptr<ov::Model> model;
  {
    const std::lock_guard<std::mutex> guard(lock_);
    model = model_->clone();
  }
  if (sizes != kAny) {
    model->reshape(std::map<std::string, ov::PartialShape>{{"images", shape(sizes)}});
  }
  auto compiled = std::make_shared<Compiled>();
  compiled->model = the_core().compile_model(model, "CPU", settings());
  const auto index = [&](const char* name) { return output_index(compiled->model, name); };
  compiled->outputs = {index("score"), index("baseline"), index("label"), index("logits")};
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  char text[160];
  snprintf(text, sizeof text, "compiled for %lld images of %lld x %lld pixels in %.2f s%s",
           static_cast<long long>(sizes[0]), static_cast<long long>(sizes[1]),
           static_cast<long long>(sizes[2]), spent.count(),
           sizes == kAny ? " (0: any; there were too many sizes)" : "");
  options_.log(ODIN_LOG_INFO, text);
  return compiled;
}

}  // namespace

const bool kHasOpenVino = true;

std::unique_ptr<Session> open_openvino(Bundle& bundle, const SessionOptions& options) {
  return std::make_unique<OpenVinoSession>(bundle, options);
}

}  // namespace odin::detail
