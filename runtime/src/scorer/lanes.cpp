#include "lanes.hpp"

#include <string.h>

#include <algorithm>

#include "images.hpp"

namespace odin::detail {

namespace {

size_t image_bytes(const odin_images& images) {
  return static_cast<size_t>(images.height * images.width * images.channels) *
         element_bytes(images.type);
}

}  // namespace

Lane::Lane(const Model& model)
    : model_(model),
      stream_(new_stream()),
      event_(new_event()),
      input_(static_cast<size_t>(model.most_pixels()) * sizeof(float)),
      staged_(static_cast<size_t>(model.most_pixels()) * sizeof(float)),
      workspace_(model) {
  const auto logits = static_cast<size_t>(model.limits.count.most * model.spec.classes);
  fetched_ = PinnedBytes(workspace_.results_bytes());
  fetched_logits_ = PinnedBytes(logits * sizeof(float));
}

Lane::~Lane() { settle(); }

bool Lane::settle() noexcept {
  if (cudaStreamSynchronize(stream_.get()) == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

bool Lane::at_rest() const noexcept {
  if (cudaStreamQuery(stream_.get()) == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

void Lane::come_after(cudaStream_t stream) {
  const cudaError_t error = cudaEventRecord(event_.get(), stream);
  if (error == cudaErrorInvalidResourceHandle) {
    cudaGetLastError();
    fail(ODIN_BAD_VALUE, "the stream is of another device or context than the scorer's: make it "
         "while device options.device is current");
  }
  check_cuda(error, "recording an event on the caller's stream");
  check_cuda(cudaStreamWaitEvent(stream_.get(), event_.get(), 0),
             "waiting for the caller's stream");
}

void Lane::hold_back(cudaStream_t stream) {
  check_cuda(cudaEventRecord(event_.get(), stream_.get()), "recording an event");
  check_cuda(cudaStreamWaitEvent(stream, event_.get(), 0), "letting the caller's stream wait");
}

void Lane::begin(const odin_images& images, const Targets& targets, Chunk chunk) {
  chunk_ = chunk;
  const int64_t padded = std::max<int64_t>(chunk.count, model_.limits.count.least);
  const void* source = nullptr;
  if (images.memory == ODIN_DEVICE) {
    source = readable(images, chunk, padded);
  } else {
    stage(images, chunk, padded);
    source = input_.data();
  }
  const bool raw = images.type == ODIN_U8_NHWC;
  workspace_.enqueue({source, raw, padded, images.height, images.width}, stream_.get());
  fetch(targets, chunk);
}

// Copy images of the host to the device, through page-locked memory; the last one fills up a part
// that has fewer than the plan takes.
void Lane::stage(const odin_images& images, Chunk chunk, int64_t padded) {
  const size_t bytes = image_bytes(images), count = static_cast<size_t>(chunk.count);
  const auto* source =
      static_cast<const char*>(images.data) + static_cast<size_t>(chunk.first) * bytes;
  memcpy(staged_.data(), source, count * bytes);
  for (size_t i = count; i < static_cast<size_t>(padded); ++i) {
    memcpy(staged_.as<char>(i * bytes), source + (count - 1) * bytes, bytes);
  }
  check_cuda(cudaMemcpyAsync(input_.data(), staged_.data(), static_cast<size_t>(padded) * bytes,
                             cudaMemcpyHostToDevice, stream_.get()),
             "copying images to the GPU");
}

// Where a part of images of the device can be read: where they lie, or a copy, on the device.
const void* Lane::readable(const odin_images& images, Chunk chunk, int64_t padded) {
  const size_t bytes = image_bytes(images), count = static_cast<size_t>(chunk.count);
  const auto* source =
      static_cast<const char*>(images.data) + static_cast<size_t>(chunk.first) * bytes;
  const bool by_kernel = images.type == ODIN_U8_NHWC && !model_.raw_only();  // takes any address
  const bool aligned = reinterpret_cast<uintptr_t>(source) % kDeviceAlignment == 0;
  if (padded == chunk.count && (by_kernel || aligned)) return source;
  const auto copy = [&](size_t to, const char* from, size_t size) {
    check_cuda(cudaMemcpyAsync(input_.as<char>(to), from, size, cudaMemcpyDeviceToDevice,
                               stream_.get()),
               "copying images on the GPU");
  };
  copy(0, source, count * bytes);
  for (size_t i = count; i < static_cast<size_t>(padded); ++i) {
    copy(i * bytes, source + (count - 1) * bytes, bytes);
  }
  return input_.data();
}

// Queue copying the results: to the caller's memory on the device, or to ours on the host.
void Lane::fetch(const Targets& targets, Chunk chunk) {
  const auto count = static_cast<size_t>(chunk.count), first = static_cast<size_t>(chunk.first);
  const auto classes = static_cast<size_t>(model_.spec.classes);
  const auto copy = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()), "copying results");
  };
  const auto* results = static_cast<const char*>(workspace_.results());
  if (targets.memory == ODIN_HOST) {
    copy(fetched_.data(), results, workspace_.results_bytes(), cudaMemcpyDeviceToHost);
    if (targets.logits == nullptr) return;
    copy(fetched_logits_.data(), workspace_.logits(), count * classes * sizeof(float),
         cudaMemcpyDeviceToHost);
    return;
  }
  const auto on_device = [&](auto* target, const void* from, size_t width) {
    if (target == nullptr) return;
    copy(target + first * width, from, count * width * sizeof *target, cudaMemcpyDeviceToDevice);
  };
  on_device(targets.label, results + Workspace::label_offset(), 1);
  on_device(targets.score, results + workspace_.score_offset(), 1);
  on_device(targets.baseline, results + workspace_.baseline_offset(), 1);
  on_device(targets.logits, workspace_.logits(), classes);
}

void Lane::finish(const Targets& targets) {
  check_cuda(cudaStreamSynchronize(stream_.get()), "waiting for the GPU");
  if (targets.memory == ODIN_DEVICE) return;
  const auto count = static_cast<size_t>(chunk_.count), first = static_cast<size_t>(chunk_.first);
  const auto write = [&](auto* target, const char* from, size_t width) {
    if (target == nullptr) return;
    memcpy(target + first * width, from, count * width * sizeof *target);
  };
  write(targets.label, fetched_.as<char>(Workspace::label_offset()), 1);
  write(targets.score, fetched_.as<char>(workspace_.score_offset()), 1);
  write(targets.baseline, fetched_.as<char>(workspace_.baseline_offset()), 1);
  write(targets.logits, fetched_logits_.as<char>(), static_cast<size_t>(model_.spec.classes));
}

Lanes::Lanes(const Model& model, int32_t most, const Log& log)
    : model_(model), log_(log), most_(static_cast<size_t>(most)) {
  idle_.reserve(most_);  // giving back never fails
  idle_.push_back(std::make_unique<Lane>(model));
  made_ = 1;
}

Lanes::Lease::~Lease() {
  if (!lane_) return;
  // A call that failed: nothing may be at work on memory of its caller.
  if (at_work_ && !lane_->settle()) lane_.reset();
  lanes_->give_back(std::move(lane_));
}

void Lanes::give_back(std::unique_ptr<Lane> lane) noexcept {
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (lane) {
      idle_.push_back(std::move(lane));
    } else {
      --made_;
    }
  }
  freed_.notify_one();
}

Lanes::Lease Lanes::wait() {
  std::unique_lock<std::mutex> guard(lock_);
  while (true) {
    if (auto lane = take(guard)) return {*this, std::move(lane)};
    freed_.wait(guard, [&] { return !idle_.empty() || made_ < most_; });
  }
}

std::optional<Lanes::Lease> Lanes::try_one() {
  std::unique_lock<std::mutex> guard(lock_);
  auto lane = take(guard);
  if (!lane) return std::nullopt;
  return std::optional<Lease>(std::in_place, *this, std::move(lane));
}

// An idle lane at rest, or a new one, or the one that was given back longest ago; null if there is
// none now. Where there is no memory for another, those that there are have to do.
std::unique_ptr<Lane> Lanes::take(std::unique_lock<std::mutex>& guard) {
  auto chosen = std::find_if(idle_.begin(), idle_.end(),
                             [](const auto& lane) { return lane->at_rest(); });
  if (chosen == idle_.end() && made_ >= most_) chosen = idle_.begin();
  if (chosen != idle_.end()) {
    auto lane = std::move(*chosen);
    idle_.erase(chosen);
    return lane;
  }
  if (made_ >= most_) return nullptr;
  ++made_;
  guard.unlock();
  std::unique_ptr<Lane> lane;
  std::optional<Failure> failure;
  try {
    lane = std::make_unique<Lane>(model_);
  } catch (const Failure& each) {
    failure = each;
  } catch (...) {
    guard.lock();
    --made_;
    freed_.notify_one();
    throw;
  }
  guard.lock();
  if (lane) return lane;
  --made_;
  freed_.notify_one();
  if (failure->status != ODIN_NO_MEMORY || made_ == 0) throw *failure;
  most_ = made_;
  guard.unlock();
  log_(ODIN_LOG_INFO, "fewer parts at once than options.streams: " + failure->text);
  guard.lock();
  return nullptr;
}

}  // namespace odin::detail
