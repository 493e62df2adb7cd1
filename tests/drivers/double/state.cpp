// The double's books, and the functions through which a test reads and sets them.
#include <cstring>

#include "double.hpp"

namespace odin_double {

State& state() {
  static State* one = new State;  // never destroyed: threads may outlive main
  return *one;
}

std::vector<Context*>& context_stack() {
  static thread_local std::vector<Context*> stack;
  return stack;
}

// A fork does not take CUDA along.
bool forked() { return state().process != 0 && state().process != getpid(); }

Context* current_context() {
  return context_stack().empty() ? nullptr : context_stack().back();
}

// Whether what belongs to a context is used in it; CUDA leaves open what happens elsewhere.
bool is_current(const Context* owner, const std::string& what) {
  if (owner == nullptr || owner == current_context()) return true;
  record_error("use of " + what + " in another context than its own");
  return false;
}

static bool is_released(const Context* context) {
  return context->primary && context->retained == 0;
}

void record_error(const std::string& text) {
  state().errors.push_back(text);
  state().log.push_back("error " + text);
}

int refuse(const char* name) {
  Lock lock(state().mutex);
  record_error(std::string(name) + " is not part of the double");
  return CUDA_ERROR_NOT_SUPPORTED;
}

int choose(int count) { return static_cast<int>(state().random() % static_cast<unsigned>(count)); }

void Call::begin(const char* name, Needs needs, const std::string& arguments) {
  State& s = state();
  std::string line = std::string("call ") + name;
  s.log.push_back(arguments.empty() ? line : line + " " + arguments);
  const long number = ++s.calls[name];
  auto& failures = s.failures[name];
  if (const auto found = failures.find(number); found != failures.end()) {
    s.log.push_back(text("injected ", name, " number=", number));
    result_ = found->second;
  } else if (needs != kNothing && (!s.initialised || forked())) {
    result_ = CUDA_ERROR_NOT_INITIALIZED;
  } else if (s.dead != CUDA_SUCCESS) {
    result_ = s.dead;
  } else if (needs == kContext && context_stack().empty()) {
    record_error(std::string(name) + ": no context is current");
    result_ = CUDA_ERROR_INVALID_CONTEXT;
  } else if (needs == kContext && is_released(current_context())) {
    record_error(std::string(name) + ": the current context has been released");
    result_ = CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  if (s.options["seed"] != 0 && result_ == CUDA_SUCCESS) {
    while (choose(2) != 0 && run_one_at_random(lock_)) {
    }
  }
}

static std::string joined(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  return all;
}

static std::vector<std::string> leaks() {
  State& s = state();
  std::vector<std::string> found;
  for (const auto& [begin, memory] : s.memory)
    if (!memory.freed)
      found.push_back(text(memory.host ? "pinned" : "device", " memory ", place(begin), " of ",
                           memory.size, " bytes"));
  for (const Stream* stream : s.streams)
    if (!stream->foreign) found.push_back(text("stream s", stream->id));
  for (const Event* event : s.events) found.push_back(text("event e", event->id));
  for (const Module* module : s.modules) found.push_back(text("module o", module->id));
  for (const auto& [graph, owner] : s.graphs) found.push_back(text("graph g", graph->id));
  for (const auto& [graph, owner] : s.executables)
    found.push_back(text("executable graph g", graph->id));
  if (!s.user_objects.empty()) found.push_back(text(s.user_objects.size(), " user objects"));
  for (const Context* context : s.contexts)
    if (!context->primary) found.push_back("a context that is not the primary one");
  for (const auto& [device, context] : s.primary)
    if (context.retained != 0)
      found.push_back(text("primary context of device ", device, ", retained ", context.retained,
                           " times"));
  if (!context_stack().empty())
    found.push_back(text(context_stack().size(), " contexts still current in this thread"));
  return found;
}

}  // namespace odin_double

using odin_double::Lock;
using odin_double::state;

extern "C" {

// Copies `what` ("log", "errors" or "leaks"), one a line, and returns its length.
size_t odin_double_report(const char* what, char* out, size_t room) {
  Lock lock(state().mutex);
  const std::string asked = what;
  const std::string all = odin_double::joined(asked == "log"      ? state().log
                                              : asked == "errors" ? state().errors
                                                                  : odin_double::leaks());
  if (out != nullptr && room > all.size()) std::memcpy(out, all.c_str(), all.size() + 1);
  return all.size();
}

void odin_double_clear_log() {
  Lock lock(state().mutex);
  state().log.clear();
}

// Options: devices, driver_version, major, minor, multiprocessors, init_error, seed (0: as late as
// the rules allow; otherwise at random), free_waits (1: cuMemFree waits for all work first, as
// CUDA's does; 0: it does not, so that who relies on it is seen), reuse_streams (1: a new stream has
// the handle of the one destroyed last). Returns 0, or 1 for an unknown option.
int odin_double_configure(const char* option, long value) {
  Lock lock(state().mutex);
  const auto found = state().options.find(option);
  if (found == state().options.end()) return 1;
  found->second = value;
  if (std::strcmp(option, "seed") == 0) state().random.seed(static_cast<unsigned>(value));
  return 0;
}

// Lets the `number`-th call of a driver function from now on return `error`.
void odin_double_fail(const char* function, long number, int error) {
  Lock lock(state().mutex);
  const long reached = state().calls[function];
  state().failures[function][reached + number] = static_cast<CUresult>(error);
}

// Takes back what odin_double_fail has asked for and has not happened.
void odin_double_forget_failures() {
  Lock lock(state().mutex);
  state().failures.clear();
}

// Says that modules loaded from now on hold a kernel with parameters of these sizes.
void odin_double_declare(const char* kernel, const size_t* sizes, size_t count) {
  Lock lock(state().mutex);
  state().declared[kernel] = std::vector<size_t>(sizes, sizes + count);
}

// `callback` is called for each launch when its turn comes; a return value other than 0 is the
// CUresult that later calls see, as after a fault on a device.
void odin_double_on_launch(odin_double::LaunchCallback callback) {
  Lock lock(state().mutex);
  state().on_launch = callback;
}

// A stream that stands for one of the caller's: destroying it is an error.
void* odin_double_foreign_stream() {
  Lock lock(state().mutex);
  auto* stream = new odin_double::Stream{state().next_id++, false, true};
  state().streams.insert(stream);
  state().busy.insert(stream);
  return stream;
}

// Queues setting `size` bytes of device memory to `value`: the caller's own work on its stream.
int odin_double_foreign_fill(void* stream, void* device, int value, size_t size) {
  Lock lock(state().mutex);
  odin_double::Operation work;
  work.what = odin_double::text("foreign fill bytes=", size);
  work.run = [device, value, size](Lock&) {
    std::memset(device, value, size);
    return CUDA_SUCCESS;
  };
  return odin_double::enqueue(*static_cast<odin_double::Stream*>(stream), std::move(work));
}

// Copies begin and size of all device memory that is not freed; returns how many there are.
size_t odin_double_live(size_t* begins, size_t* sizes, size_t room) {
  Lock lock(state().mutex);
  size_t count = 0;
  for (const auto& [begin, memory] : state().memory) {
    if (memory.freed || memory.host) continue;
    if (count < room) {
      begins[count] = begin;
      sizes[count] = memory.size;
    }
    count++;
  }
  return count;
}

}  // extern "C"
