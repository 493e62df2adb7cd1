// Streams and events, and the scheduler that does queued work.
//
// Work of a stream is done in order. With seed 0 a piece of work is done only when somebody waits
// for it; with another seed some is also done at random at every call.
#include <algorithm>

#include "double.hpp"

namespace odin_double {

Stream* find_stream(CUstream handle) {
  State& s = state();
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return &s.legacy;
  if (handle == CU_STREAM_PER_THREAD) {
    const int number = -1 - static_cast<int>(s.per_thread.size());
    return &s.per_thread.try_emplace(std::this_thread::get_id(), Stream{number, true, false})
                .first->second;
  }
  auto* stream = reinterpret_cast<Stream*>(handle);
  if (s.streams.count(stream) != 0)
    return is_current(stream->context, "a stream") ? stream : nullptr;
  record_error("use of a stream that does not exist");
  return nullptr;
}

std::string stream_name(CUstream handle) {
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return "legacy";
  if (handle == CU_STREAM_PER_THREAD) return "per-thread";
  const auto* stream = reinterpret_cast<const Stream*>(handle);
  return state().busy.count(const_cast<Stream*>(stream)) != 0 ? text("s", stream->id) : "unknown";
}

std::vector<Stream*> all_streams() {
  std::vector<Stream*> all(state().busy.begin(), state().busy.end());
  std::sort(all.begin(), all.end(), [](Stream* a, Stream* b) { return a->id < b->id; });
  all.push_back(&state().legacy);
  for (auto& [thread, stream] : state().per_thread) all.push_back(&stream);
  return all;
}

static bool ready(const Stream& stream) {
  if (stream.running || stream.queue.empty()) return false;
  const auto& after = stream.queue.front().after;
  return std::all_of(after.begin(), after.end(), [](const Done& done) { return *done; });
}

static void run_first(Stream& stream, Lock& lock) {
  State& s = state();
  Operation work = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.running = true;
  s.log.push_back(text("run ", work.what, " stream=s", stream.id));
  const CUresult result = s.dead == CUDA_SUCCESS ? work.run(lock) : CUDA_SUCCESS;
  if (result != CUDA_SUCCESS) s.dead = result;
  s.operations_done++;
  *work.done = true;
  stream.running = false;
  if (stream.queue.empty() && s.streams.count(&stream) == 0) s.busy.erase(&stream);
  s.changed.notify_all();
}

bool run_one_at_random(Lock& lock) {
  std::vector<Stream*> candidates;
  for (Stream* stream : all_streams())
    if (ready(*stream)) candidates.push_back(stream);
  if (candidates.empty()) return false;
  run_first(*candidates[static_cast<size_t>(choose(static_cast<int>(candidates.size())))], lock);
  return true;
}

static Stream* holder(const Done& done) {
  for (Stream* stream : all_streams())
    for (const Operation& work : stream->queue)
      if (work.done == done) return stream;
  return nullptr;
}

// Does one piece of work without which the first of `stream` cannot be done, or waits for a thread
// that is doing one.
static void advance(Stream& stream, Lock& lock) {
  Stream* next = &stream;
  while (!next->running && !next->queue.empty()) {
    const auto& after = next->queue.front().after;
    const auto missing =
        std::find_if(after.begin(), after.end(), [](const Done& done) { return !*done; });
    if (missing == after.end()) return run_first(*next, lock);
    Stream* other = holder(*missing);
    if (other == nullptr) break;  // another thread is doing it
    next = other;
  }
  state().changed.wait(lock);
}

CUresult wait_for(Stream& stream, const Done& target, Lock& lock) {
  while (!*target) {
    if (state().options["seed"] != 0 && choose(2) != 0) run_one_at_random(lock);
    if (!*target) advance(stream, lock);
  }
  return state().dead;
}

CUresult wait_for_all(bool blocking_only, Lock& lock) {
  for (Stream* stream : all_streams())
    if (stream->blocking || !blocking_only) wait_for(*stream, stream->last, lock);
  return state().dead;
}

static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

// What the mode of a capture forbids, but for threads that see to it themselves; and, whatever the
// modes, waiting for a whole context.
static bool forbids(const Stream& stream, bool whole_context) {
  if (!stream.captures_here) return false;
  if (whole_context) return true;
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  if (stream.mode == CU_STREAM_CAPTURE_MODE_GLOBAL) return true;
  const bool here = stream.capturer == std::this_thread::get_id();
  return here && stream.mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
}

bool capture_forbids(const char* who, bool whole_context) {
  for (Stream* stream : all_streams()) {
    if (!forbids(*stream, whole_context)) continue;
    stream->capture->graph->invalid = true;
    record_error(text(who, " while s", stream->id, " is being captured"));
    return true;
  }
  return false;
}

static CUresult add_node(Stream& stream, Operation operation) {
  Capture& capture = *stream.capture;
  capture.graph->nodes.push_back(Node{std::move(operation), capture.last});
  capture.last = {static_cast<int>(capture.graph->nodes.size()) - 1};
  return CUDA_SUCCESS;
}

// The legacy stream waits for all blocking ones, which work that is only recorded cannot be.
bool capture_depends_on_legacy() {
  bool found = false;
  for (Stream* stream : all_streams()) {
    if (!stream->blocking || stream->capture == nullptr) continue;
    stream->capture->graph->invalid = true;
    record_error("use of the legacy stream while a blocking stream is being captured");
    found = true;
  }
  return found;
}

CUresult enqueue(Stream& stream, Operation operation) {
  if (stream.capture != nullptr) return add_node(stream, std::move(operation));
  if (&stream == &state().legacy) {
    if (capture_depends_on_legacy()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    for (Stream* other : all_streams())
      if (other->blocking && other != &stream) operation.after.push_back(other->last);
  } else if (stream.blocking) {
    operation.after.push_back(state().legacy.last);
  }
  stream.last = operation.done;
  stream.queue.push_back(std::move(operation));
  return CUDA_SUCCESS;
}

// The place of the stream destroyed last, whose work goes on elsewhere; or a new one.
static Stream* place_for_stream() {
  Stream* place = state().options["reuse_streams"] != 0 ? state().destroyed : nullptr;
  state().destroyed = nullptr;
  if (place == nullptr || place->running) return new Stream{};
  if (state().busy.erase(place) != 0) state().busy.insert(new Stream(std::move(*place)));
  return place;
}

static CUresult create_stream(CUstream* out, unsigned flags) {
  const bool blocking = (flags & CU_STREAM_NON_BLOCKING) == 0;
  Stream* stream = place_for_stream();
  *stream = Stream{state().next_id++, blocking, false, current_context()};
  state().streams.insert(stream);
  state().busy.insert(stream);
  *out = reinterpret_cast<CUstream>(stream);
  return CUDA_SUCCESS;
}

static CUresult refuse_capturing(const Stream& stream, const char* who) {
  if (stream.capture == nullptr) return CUDA_SUCCESS;
  stream.capture->graph->invalid = true;
  record_error(text(who, " of s", stream.id, " while it is being captured"));
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static Event* find_event(CUevent handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  if (state().events.count(event) != 0)
    return is_current(event->context, "an event") ? event : nullptr;
  record_error("use of an event that does not exist");
  return nullptr;
}

static std::string event_name(CUevent handle) {
  const auto* event = reinterpret_cast<const Event*>(handle);
  const bool known = state().events.count(const_cast<Event*>(event)) != 0;
  return known ? text("e", event->id) : "unknown";
}

static Stream* holder_of_event(const Event& event) {
  Stream* stream = holder(event.recorded);
  return stream != nullptr ? stream : &state().legacy;
}

static CUresult record(Event& event, Stream& stream) {
  event.graph = stream.capture != nullptr ? stream.capture->graph : nullptr;
  if (stream.capture != nullptr) {
    event.captured = stream.capture->last;
    return CUDA_SUCCESS;
  }
  Operation work;
  work.what = text("record e", event.id);
  event.time = std::make_shared<uint64_t>(0);
  work.run = [time = event.time](Lock&) {
    *time = state().operations_done;
    return CUDA_SUCCESS;
  };
  event.recorded = work.done;
  return enqueue(stream, std::move(work));
}

// A stream that waits for an event of a capture joins the capture.
static CUresult join(Stream& stream, const Event& event) {
  if (event.graph->ended) return CUDA_ERROR_CAPTURED_EVENT;
  if (stream.capture == nullptr) {
    stream.capture = std::make_shared<Capture>(Capture{event.graph, {}});
  }
  auto& last = stream.capture->last;
  last.insert(last.end(), event.captured.begin(), event.captured.end());
  return CUDA_SUCCESS;
}

}  // namespace odin_double

using namespace odin_double;

extern "C" {

CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
  ENTER("cuStreamCreate", "flags=", flags);
  return create_stream(stream, flags);
}

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned int flags, int) {
  ENTER("cuStreamCreate", "flags=", flags);
  return create_stream(stream, flags);
}

CUresult cuStreamDestroy(CUstream handle) {
  ENTER("cuStreamDestroy", "stream=", stream_name(handle));
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->foreign) record_error("a stream of the caller's was destroyed");
  if (stream->capture != nullptr) stream->capture->graph->invalid = true;
  state().streams.erase(stream);  // its work goes on
  state().destroyed = stream;
  if (stream->queue.empty()) state().busy.erase(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
  ENTER("cuStreamSynchronize", "stream=", stream_name(handle));
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult refused = refuse_capturing(*stream, "cuStreamSynchronize")) return refused;
  if (stream == &state().legacy) return wait_for_all(true, call.lock());
  return wait_for(*stream, stream->last, call.lock());
}

CUresult cuStreamQuery(CUstream handle) {
  ENTER("cuStreamQuery", "stream=", stream_name(handle));
  Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult refused = refuse_capturing(*stream, "cuStreamQuery")) return refused;
  if (*stream->last) return CUDA_SUCCESS;
  advance(*stream, call.lock());  // who asks again and again comes to an end
  return CUDA_ERROR_NOT_READY;
}

CUresult cuStreamGetFlags(CUstream handle, unsigned int* flags) {
  ENTER("cuStreamGetFlags", "stream=", stream_name(handle));
  const Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *flags = stream->blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING;
  return CUDA_SUCCESS;
}

CUresult cuStreamGetId(CUstream handle, unsigned long long* number) {
  ENTER("cuStreamGetId", "stream=", stream_name(handle));
  const Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *number = static_cast<unsigned long long>(stream->id);
  return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ENTER_NEEDING(kInit, "cuThreadExchangeStreamCaptureMode", "mode=", int{*mode});
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}

CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  ENTER("cuStreamGetPriority", "stream=", stream_name(handle));
  *priority = 0;
  return find_stream(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  ENTER("cuStreamGetCtx", "stream=", stream_name(handle));
  *context = reinterpret_cast<CUcontext>(context_stack().back());
  return find_stream(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent awaited, unsigned int) {
  ENTER("cuStreamWaitEvent", "stream=", stream_name(handle), " event=", event_name(awaited));
  Stream* stream = find_stream(handle);
  const Event* event = find_event(awaited);
  if (stream == nullptr || event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (event->graph != nullptr) return join(*stream, *event);
  if (stream->capture != nullptr) {
    record_error("a stream that is being captured waits for work outside the capture");
    stream->capture->graph->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  if (event->recorded == nullptr) return CUDA_SUCCESS;  // never recorded: nothing to wait for
  Operation work;
  work.what = text("wait e", event->id);
  work.after = {event->recorded};
  work.run = [](Lock&) { return CUDA_SUCCESS; };
  return enqueue(*stream, std::move(work));
}

CUresult cuEventCreate(CUevent* out, unsigned int flags) {
  ENTER("cuEventCreate", "flags=", flags);
  const bool timing = (flags & CU_EVENT_DISABLE_TIMING) == 0;
  auto* event = new Event{state().next_id++, timing, current_context()};
  state().events.insert(event);
  *out = reinterpret_cast<CUevent>(event);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent handle) {
  ENTER("cuEventDestroy", "event=", event_name(handle));
  Event* event = find_event(handle);
  return event != nullptr && state().events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecord(CUevent handle, CUstream on) {
  ENTER("cuEventRecord", "event=", event_name(handle), " stream=", stream_name(on));
  Event* event = find_event(handle);
  Stream* stream = find_stream(on);
  if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return record(*event, *stream);
}

CUresult cuEventSynchronize(CUevent handle) {
  ENTER("cuEventSynchronize", "event=", event_name(handle));
  const Event* event = find_event(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (event->graph != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
  if (event->recorded == nullptr) return CUDA_SUCCESS;
  const Done target = event->recorded;
  while (!*target) wait_for(*holder_of_event(*event), target, call.lock());
  return state().dead;
}

CUresult cuEventQuery(CUevent handle) {
  ENTER("cuEventQuery", "event=", event_name(handle));
  const Event* event = find_event(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (event->recorded == nullptr || *event->recorded) return CUDA_SUCCESS;
  advance(*holder_of_event(*event), call.lock());
  return CUDA_ERROR_NOT_READY;
}

// Counts operations, not time: nothing is to be timed on a double.
CUresult cuEventElapsedTime(float* out, CUevent from, CUevent to) {
  ENTER("cuEventElapsedTime", "from=", event_name(from), " to=", event_name(to));
  const Event* first = find_event(from);
  const Event* second = find_event(to);
  if (first == nullptr || second == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!first->timing || !second->timing) return CUDA_ERROR_INVALID_HANDLE;
  if (first->recorded == nullptr || second->recorded == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!*first->recorded || !*second->recorded) return CUDA_ERROR_NOT_READY;
  *out = static_cast<float>(*second->time) - static_cast<float>(*first->time);
  return CUDA_SUCCESS;
}

}  // extern "C"
