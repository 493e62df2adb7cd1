// TensorRT on a GPU, with kernels of our own around its plans.
#include <deque>

#include "lanes.hpp"
#include "nvinfer.hpp"
#include "plans.hpp"
#include "session.hpp"

namespace odin::detail {

namespace {

using LongLong = long long;

constexpr int32_t kStreams = 2;  // one part is copied while another is computed

class TensorRtSession : public Session {
 public:
  TensorRtSession(Bundle& bundle, const SessionOptions& options);
  ~TensorRtSession() override;
  int32_t batch_size() const override { return model_->limits.count.most; }
  Range height() const override { return model_->limits.height; }
  Range width() const override { return model_->limits.width; }
  void score(const odin_images& images, const Targets& targets) override;
  void enqueue(const odin_images& images, const Targets& targets, void* stream) override;

 private:
  void check(const odin_images& images, const Targets& targets) const;
  void check_side(const char* name, int64_t size, Range taken) const;
  void check_place(const char* name, const void* place) const;
  std::vector<Chunk> chunks(int64_t count) const;

  const int device_;
  const Log log_;
  const std::string remedy_;
  std::optional<Model> model_;
  std::optional<Lanes> lanes_;
};

TensorRtSession::TensorRtSession(Bundle& bundle, const SessionOptions& options)
    : device_(options.device),
      log_(options.log),
      remedy_("odin-export " + folder_argument(bundle.path) + " --engine trt") {
  const OnDevice current(device_);
  const Listening listening(log_);
  model_.emplace(bundle, options.batch_size);
  try {
    lanes_.emplace(*model_, options.streams > 0 ? options.streams : kStreams, log_);
  } catch (...) {
    model_.reset();  // now, while the device is current
    throw;
  }
}

// What TensorRT and CUDA free, they free on the current device. Freeing itself throws nothing.
TensorRtSession::~TensorRtSession() {
  try {
    const OnDevice current(device_);
    const Listening listening(log_);
    lanes_.reset();
    model_.reset();
  } catch (...) {  // the device cannot be used any more: its memory went with it
  }
}

void TensorRtSession::check_side(const char* name, int64_t size, Range taken) const {
  if (size >= taken.least && size <= taken.most) return;
  fail(ODIN_BAD_SIZE,
       "images are %lld pixels %s, where the plans take %d to %d: resize or crop them, or build "
       "the plans again with '%s --minShapes=... --maxShapes=...'",
       static_cast<LongLong>(size), name, taken.least, taken.most, remedy_.c_str());
}

void TensorRtSession::check_place(const char* name, const void* place) const {
  if (place == nullptr) return;
  cudaPointerAttributes found{};
  check_cuda(cudaPointerGetAttributes(&found, place), name);
  if (found.type == cudaMemoryTypeManaged) return;
  if (found.type != cudaMemoryTypeDevice) {
    fail(ODIN_BAD_VALUE, "%s is said to be on the device (ODIN_DEVICE), and is memory of the host",
         name);
  }
  if (found.device == device_) return;
  fail(ODIN_BAD_VALUE, "%s is on GPU %d, and the scorer on GPU %d: copy it there, or open the "
       "bundle with options.device = %d", name, found.device, device_, found.device);
}

void TensorRtSession::check(const odin_images& images, const Targets& targets) const {
  if (images.type != ODIN_U8_NHWC && model_->raw_only()) {
    fail(ODIN_BAD_TYPE, "the plan takes raw images and normalises them itself: give it "
         "ODIN_U8_NHWC, or export the bundle with --input-type float32");
  }
  check_side("high", images.height, model_->limits.height);
  check_side("wide", images.width, model_->limits.width);
  if (images.memory == ODIN_DEVICE) check_place("images.data", images.data);
  if (targets.memory != ODIN_DEVICE) return;
  check_place("scores.score", targets.score);
  check_place("scores.baseline", targets.baseline);
  check_place("scores.label", targets.label);
  check_place("scores.logits", targets.logits);
}

std::vector<Chunk> TensorRtSession::chunks(int64_t count) const {
  const int64_t most = model_->limits.count.most;
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < count; first += most) {
    chunks.push_back({first, std::min(most, count - first)});
  }
  return chunks;
}

// As many parts at once as there are lanes that nobody else uses, and one at least. A thread that
// holds a lane waits for no other one: two that did could wait for each other.
void TensorRtSession::score(const odin_images& images, const Targets& targets) {
  const OnDevice current(device_);
  const Listening listening(log_);
  check(images, targets);
  std::deque<Lanes::Lease> at_work, idle;
  const auto finish_one = [&] {
    at_work.front()->finish(targets);
    at_work.front().at_work(false);
    idle.push_back(std::move(at_work.front()));
    at_work.pop_front();
  };
  for (const Chunk chunk : chunks(images.count)) {
    if (idle.empty() && at_work.empty()) idle.push_back(lanes_->wait());
    if (idle.empty()) {
      if (auto lease = lanes_->try_one()) idle.push_back(std::move(*lease));
    }
    if (idle.empty()) finish_one();
    at_work.push_back(std::move(idle.front()));
    idle.pop_front();
    at_work.back().at_work(true);
    at_work.back()->begin(images, targets, chunk);
  }
  while (!at_work.empty()) finish_one();
}

// The parts follow each other in one lane, which is free for others at once: what they queue comes
// after.
void TensorRtSession::enqueue(const odin_images& images, const Targets& targets, void* stream) {
  if (images.memory != ODIN_DEVICE || targets.memory != ODIN_DEVICE) {
    fail(ODIN_UNSUPPORTED, "queueing takes images and scores on the device (ODIN_DEVICE); for "
         "those of the host use odin_scorer_score");
  }
  if (images.count == 0) return;
  const OnDevice current(device_);
  const Listening listening(log_);
  check(images, targets);
  auto* const callers = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(callers, &capture), "asking the caller's stream");
  if (capture != cudaStreamCaptureStatusNone) {
    fail(ODIN_UNSUPPORTED, "the stream is being captured in a CUDA graph, which scoring cannot "
         "be: end the capture first");
  }
  Lanes::Lease lane = lanes_->wait();
  lane.at_work(true);
  lane->come_after(callers);
  for (const Chunk chunk : chunks(images.count)) lane->begin(images, targets, chunk);
  lane->hold_back(callers);
  lane.at_work(false);
}

// Why one plan cannot be run on a GPU.
void check_plan(const Bundle& bundle, const PlanRecord& record, const std::string& precision,
                const Gpu& gpu) {
  const std::string file = bundle.path + "/" + record.file;
  const std::string rebuild =
      "build it with 'odin-export " + folder_argument(bundle.path) + " --engine trt'";
  const std::string version = tensorrt_version();
  if (record.graph_sha256 != bundle.files.at(record.graph).sha256) {
    fail(ODIN_UNSUPPORTED, "%s was built from another %s than the bundle holds; %s", file.c_str(),
         record.graph.c_str(), rebuild.c_str());
  }
  if (record.precision != precision) {
    fail(ODIN_UNSUPPORTED,
         "%s computes in %s, not in %s; use ODIN_PRECISION_BUNDLE, or export another bundle with "
         "'odin-export MODEL --precision %s --engine trt'",
         file.c_str(), record.precision.c_str(), precision.c_str(), precision.c_str());
  }
  if (!same_version(record.version, version)) {
    fail(ODIN_UNSUPPORTED, "%s was built by TensorRT %s, and here is %s; %s", file.c_str(),
         record.version.c_str(), version.c_str(), rebuild.c_str());
  }
  const auto& capabilities = record.compute_capabilities;
  const bool of_kind = std::find(capabilities.begin(), capabilities.end(),
                                 gpu.compute_capability) != capabilities.end();
  const bool of_name = record.device.empty() || record.device == gpu.name;
  if (record.hardware_compatibility == "ampere+" ? gpu.major >= 8 : of_kind && of_name) return;
  std::string built_for = record.device.empty() ? "GPUs" : record.device;
  built_for += " of compute capability";
  for (const std::string& each : capabilities) built_for += " " + each;
  fail(ODIN_UNSUPPORTED, "%s was built for %s, and here is %s (compute capability %s); %s",
       file.c_str(), built_for.c_str(), gpu.name.c_str(), gpu.compute_capability.c_str(),
       rebuild.c_str());
}

}  // namespace

const bool kHasTensorRt = true;

std::optional<Failure> tensorrt_problem(const Bundle& bundle, const std::string& precision,
                                        int32_t device) {
  try {
    const char* path = bundle.path.c_str();
    std::vector<const PlanRecord*> records;
    for (const std::string& graph : form_graphs(chosen_form(bundle), bundle.spec)) {
      records.push_back(find_plan(bundle, graph));
      if (records.back() != nullptr) continue;
      fail(ODIN_UNSUPPORTED,
           "bundle %s holds no plan of %s for TensorRT; build it with 'odin-export %s --engine "
           "trt'", path, graph.c_str(), folder_argument(bundle.path).c_str());
    }
    tensorrt_version();  // a Failure where there is none
    const Gpu gpu = find_gpu(device);
    const std::string& wanted = precision.empty() ? bundle.spec.precision : precision;
    for (const PlanRecord* record : records) check_plan(bundle, *record, wanted, gpu);
    return std::nullopt;
  } catch (const Failure& failure) {
    return failure;
  }
}

std::unique_ptr<Session> open_tensorrt(Bundle& bundle, const SessionOptions& options) {
  return std::make_unique<TensorRtSession>(bundle, options);
}

}  // namespace odin::detail
