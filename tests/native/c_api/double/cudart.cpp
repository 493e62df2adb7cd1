// The double of the CUDA runtime.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "double.hpp"

struct CUstream_st {
  int device = 0;
  bool capturing = false;
  size_t queued = 0, done = 0;
  std::deque<std::function<void()>> work;
};

// Events outlive their handles where a stream still waits for them.
struct Recorded {
  std::shared_ptr<CUstream_st> stream;
  size_t until = 0;
};

struct CUevent_st {
  Recorded recorded;
  int device;
};

namespace {

constexpr size_t kPage = 4096;

struct Block {
  size_t bytes, mapped;
  int device;
};

std::recursive_mutex lock;  // of all that follows
std::map<char*, Block> blocks;
std::map<char*, size_t> pinned;
std::map<CUstream_st*, std::shared_ptr<CUstream_st>> made_streams;
std::map<std::string, int> failures;
std::string told;
int living = 0, working = 0, streams_made = 0;
thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;

using Guard = std::lock_guard<std::recursive_mutex>;

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

void protect(int access) {
  for (const auto& [memory, block] : blocks) mprotect(memory, block.mapped, access);
}

// Do a stream's work up to a point; device memory can be touched meanwhile.
void advance(CUstream_st& stream, size_t until) {
  if (working++ == 0) protect(PROT_READ | PROT_WRITE);
  while (stream.done < until && !stream.work.empty()) {
    const auto work = std::move(stream.work.front());
    stream.work.pop_front();
    work();
    ++stream.done;
  }
  if (--working == 0) protect(PROT_NONE);
}

std::shared_ptr<CUstream_st> legacy() {
  static const auto stream = std::make_shared<CUstream_st>();
  return stream;
}

std::shared_ptr<CUstream_st> find(cudaStream_t stream) {
  if (stream == nullptr) return legacy();
  const auto found = made_streams.find(stream);
  if (found != made_streams.end()) return found->second;
  odin_double::fault("a stream that is not there");
  return legacy();
}

void advance_all() {
  advance(*legacy(), legacy()->queued);
  const auto all = made_streams;
  for (const auto& [handle, stream] : all) advance(*stream, stream->queued);
}

template <typename Books>
bool holds(const Books& books, const void* memory, size_t bytes) {
  auto* const start = static_cast<char*>(const_cast<void*>(memory));
  const auto next = books.upper_bound(start);
  if (next == books.begin()) return false;
  const auto& [begin, size] = *std::prev(next);
  if constexpr (std::is_same_v<Books, std::map<char*, Block>>) {
    return start + bytes <= begin + size.bytes;
  } else {
    return start + bytes <= begin + size;
  }
}

void check_side(const void* memory, size_t bytes, bool device) {
  if (holds(blocks, memory, bytes) != device) {
    odin_double::fault(device ? "a copy beyond device memory" : "a copy of the host's is a GPU's");
  }
}

}  // namespace

namespace odin_double {

void launch(cudaStream_t handle, std::function<void()> work) {
  const Guard guard(lock);
  const auto stream = find(handle);
  if (stream->device != current) fault("work for a stream of another device than the current one");
  stream->work.push_back(std::move(work));
  ++stream->queued;
}

void fail(const std::string& function, int after) {
  const Guard guard(lock);
  failures[function] = after;
}

bool fails(const char* function) {
  const Guard guard(lock);
  const auto found = failures.find(function);
  if (found == failures.end() || found->second-- > 0) return false;
  failures.erase(found);
  return true;
}

void fault(const std::string& what) {
  const Guard guard(lock);
  told += what + "; ";
}

std::string faults() {
  const Guard guard(lock);
  return told;
}

void count(int change) {
  const Guard guard(lock);
  living += change;
}

int alive() {
  const Guard guard(lock);
  return living;
}

int pending() {
  const Guard guard(lock);
  size_t work = legacy()->work.size();
  for (const auto& [handle, stream] : made_streams) work += stream->work.size();
  return static_cast<int>(work);
}

int streams() {
  const Guard guard(lock);
  return streams_made;
}

void capture(cudaStream_t stream) {
  const Guard guard(lock);
  find(stream)->capturing = true;
}

int device_of(const void* memory, size_t bytes) {
  const Guard guard(lock);
  if (!holds(blocks, memory, bytes)) return -1;
  return std::prev(blocks.upper_bound(static_cast<char*>(const_cast<void*>(memory))))
      ->second.device;
}

int device_of(cudaStream_t stream) {
  const Guard guard(lock);
  return find(stream)->device;
}

}  // namespace odin_double

using namespace odin_double;

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t) { return "cudaErrorDouble"; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "the double fails";
}

cudaError_t cudaGetDeviceCount(int* count) {
  const char* asked = getenv("DOUBLE_DEVICES");
  *count = asked == nullptr ? 2 : atoi(asked);
  return returned(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  current = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  strcpy(properties->name, "Double");
  properties->major = 9;
  properties->minor = 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (fails("cudaMalloc")) return returned(cudaErrorMemoryAllocation);
  const Guard guard(lock);
  // The end lies as near to a page that is not there as the alignment allows.
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  auto* const start = static_cast<char*>(
      mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(start, 0xA5, whole);
  mprotect(start, whole + kPage, PROT_NONE);
  *memory = start + (whole - bytes) / 256 * 256;
  // Booked by the page: what is protected; `bytes` up to the end of what was asked for.
  blocks[start] = {static_cast<size_t>(static_cast<char*>(*memory) - start) + bytes, whole,
                   current};
  count(1);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const Guard guard(lock);
  advance_all();
  const auto next = blocks.upper_bound(static_cast<char*>(memory));
  if (next == blocks.begin()) {
    fault("memory that is not there is freed");
    return returned(cudaErrorInvalidValue);
  }
  const auto block = std::prev(next);
  munmap(block->first, block->second.mapped + kPage);
  blocks.erase(block);
  count(-1);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  if (fails("cudaMallocHost")) return returned(cudaErrorMemoryAllocation);
  const Guard guard(lock);
  *memory = malloc(bytes);
  pinned[static_cast<char*>(*memory)] = bytes;
  count(1);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  const Guard guard(lock);
  advance_all();
  if (pinned.erase(static_cast<char*>(memory)) == 0) fault("host memory that is not page-locked");
  free(memory);
  count(-1);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  const int device = device_of(pointer, 1);
  found->type = device >= 0 ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  found->device = device;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (fails("cudaMemcpyAsync")) return returned(cudaErrorIllegalAddress);
  const Guard guard(lock);
  check_side(to, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice);
  check_side(from, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
  if (kind == cudaMemcpyHostToDevice && !holds(pinned, from, bytes)) {
    const auto* start = static_cast<const char*>(from);  // is read before the call returns
    launch(stream, [to, copy = std::vector<char>(start, start + bytes)] {
      memcpy(to, copy.data(), copy.size());
    });
  } else {
    launch(stream, [to, from, bytes] { memcpy(to, from, bytes); });
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Guard guard(lock);
  const int before = current;
  current = legacy()->device;  // the one legacy stream stands for those of all devices
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  current = before;
  if (error != cudaSuccess) return error;
  return cudaStreamSynchronize(nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Guard guard(lock);
  const auto made = std::make_shared<CUstream_st>();
  made->device = current;
  ++streams_made;
  made_streams[made.get()] = made;
  *stream = made.get();
  count(1);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Guard guard(lock);
  const auto found = find(stream);
  // Its work is done all the same, and whoever waits for it keeps it.
  advance(*found, found->queued);
  made_streams.erase(stream);
  count(-1);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Guard guard(lock);
  const auto found = find(stream);
  return returned(found->done == found->queued ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Guard guard(lock);
  const auto found = find(stream);
  advance(*found, found->queued);
  return returned(fails("cudaStreamSynchronize") ? cudaErrorIllegalAddress : cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (fails("cudaStreamWaitEvent")) return returned(cudaErrorIllegalAddress);
  const Guard guard(lock);
  const Recorded recorded = event->recorded;
  if (!recorded.stream) return cudaSuccess;
  launch(stream, [recorded] { advance(*recorded.stream, recorded.until); });
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Guard guard(lock);
  *status = find(stream)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{{}, current};
  count(1);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Guard guard(lock);
  const auto found = find(stream);
  if (stream != nullptr && found->device != event->device) {
    return returned(cudaErrorInvalidResourceHandle);
  }
  event->recorded = {found, found->queued};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  count(-1);
  return cudaSuccess;
}

}  // extern "C"
