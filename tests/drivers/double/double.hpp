// A test double of the CUDA driver library: the state that its files share.
//
// It is not a GPU and does not imitate one's speed. It keeps books, so that a wrong use of the
// driver is seen: device memory is host memory of known bounds; work is queued per stream and done
// as late as the rules allow (or at random, from a seed), so that a missing synchronisation shows
// as wrong data; every call is logged; any call can be made to fail.
#pragma once

#include <cuda.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace odin_double {

using Done = std::shared_ptr<bool>;  // becomes true when the operation has been done
using Lock = std::unique_lock<std::mutex>;

// One piece of queued work. `run` is called with the state's lock held.
struct Operation {
  std::string what;
  std::vector<Done> after;  // of other streams
  std::function<CUresult(Lock&)> run;
  Done done = std::make_shared<bool>(false);
};

struct Context {
  int device;
  bool primary;
  int retained;
};

struct Memory {
  int id;
  uintptr_t begin;
  size_t size;
  bool host;  // page-locked host memory
  bool freed;
  const Context* context;
};

struct Node {
  Operation operation;
  std::vector<int> after;
};

// What a caller hangs on graphs, to be called back when the last of them is gone.
struct UserObject {
  void* pointer;
  CUhostFn destroy;
  long references;
};

// CUgraph and, once instantiated, CUgraphExec.
struct Graph {
  int id;
  std::vector<Node> nodes;
  std::map<UserObject*, long> kept;
  bool invalid = false;  // something forbidden was called during the capture
  bool ended = false;    // no longer being captured
};

// One stream's part in a capture.
struct Capture {
  std::shared_ptr<Graph> graph;
  std::vector<int> last;  // the nodes that the next one of this stream comes after
};

struct Stream {
  int id;
  bool blocking;  // waits for the legacy default stream, and the reverse
  bool foreign;   // the test's, standing for a stream of the caller's
  const Context* context = nullptr;  // null: whichever is current
  std::deque<Operation> queue = {};
  Done last = std::make_shared<bool>(true);
  bool running = false;
  std::shared_ptr<Capture> capture = nullptr;
  bool captures_here = false;  // this stream began the capture
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id capturer = {};
};

struct Event {
  int id;
  bool timing;
  const Context* context;
  Done recorded = nullptr;
  std::shared_ptr<uint64_t> time = nullptr;  // how many operations had been done
  std::shared_ptr<Graph> graph = nullptr;    // if it was recorded during a capture
  std::vector<int> captured = {};            // and after which nodes
};

struct Function {
  std::string name;
  std::vector<size_t> parameters;  // sizes in bytes
};

struct Module {
  int id;
  const Context* context;  // null: a library, which is of none
  std::map<std::string, std::unique_ptr<Function>> functions;
};

using LaunchCallback = int (*)(const char* name, const uint32_t* grid, const uint32_t* block,
                               uint32_t shared, const void* parameters, size_t size);

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, long> options = {
      {"devices", 1},    {"driver_version", 13000}, {"major", 9},     {"minor", 0},
      {"init_error", 0}, {"multiprocessors", 4},    {"seed", 0},
      {"free_waits", 0}, {"reuse_streams", 0}};
  std::mt19937 random{0};
  bool initialised = false;
  pid_t process = 0;  // which has initialised it
  CUresult dead = CUDA_SUCCESS;  // an error of executed work stays, as in CUDA
  uint64_t operations_done = 0;
  std::vector<std::string> log;
  std::vector<std::string> errors;
  std::map<std::string, long> calls;
  std::map<std::string, std::map<long, CUresult>> failures;
  std::map<uintptr_t, Memory> memory;
  int next_id = 1;
  // Destroyed objects stay in memory and leave these sets: no address comes twice, but that of the
  // stream destroyed last with reuse_streams.
  std::set<Stream*> streams;
  Stream* destroyed = nullptr;
  std::set<Stream*> busy;  // those of `streams`, and destroyed ones with work left
  std::set<Event*> events;
  std::set<Module*> modules;
  std::map<Graph*, std::shared_ptr<Graph>> graphs;
  std::map<Graph*, std::shared_ptr<Graph>> executables;
  std::set<UserObject*> user_objects;
  std::set<Context*> contexts;
  std::map<int, Context> primary;
  std::map<std::string, std::vector<size_t>> declared;
  Stream legacy{0, true, false};
  std::map<std::thread::id, Stream> per_thread;
  LaunchCallback on_launch = nullptr;
};

State& state();
bool forked();
std::vector<Context*>& context_stack();
Context* current_context();
bool is_current(const Context* owner, const std::string& what);

void record_error(const std::string& text);
int refuse(const char* name);
int choose(int count);  // at random, 0 to count - 1

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Taken at the start of every driver function: locks, logs, counts, and says whether to go on.
class Call {
 public:
  enum Needs { kNothing, kInit, kContext };
  template <typename Arguments>
  Call(const char* name, Needs needs, Arguments arguments) : lock_(state().mutex) {
    begin(name, needs, arguments());
  }
  CUresult result() const { return result_; }
  Lock& lock() { return lock_; }

 private:
  void begin(const char* name, Needs needs, const std::string& arguments);

  Lock lock_;
  CUresult result_ = CUDA_SUCCESS;
};

#define ENTER_NEEDING(needs, name, ...)                                   \
  odin_double::Call call(name, odin_double::Call::needs,                  \
                         [&] { return odin_double::text(__VA_ARGS__); }); \
  if (call.result() != CUDA_SUCCESS) return call.result()
#define ENTER(name, ...) ENTER_NEEDING(kContext, name, __VA_ARGS__)

// Memory.
enum class Side { kDevice, kHost };
std::string place(uintptr_t address);
bool reachable(uintptr_t address, const Context* from);  // by a kernel
CUresult check_range(const char* who, Side side, uintptr_t address, size_t size);
void check_red_zones(const std::string& after);

// Streams.
std::vector<Stream*> all_streams();
Stream* find_stream(CUstream handle);
std::string stream_name(CUstream handle);
CUresult enqueue(Stream& stream, Operation operation);
CUresult wait_for(Stream& stream, const Done& target, Lock& lock);
CUresult wait_for_all(bool blocking_only, Lock& lock);
bool run_one_at_random(Lock& lock);
bool capture_forbids(const char* who, bool whole_context = false);
bool capture_depends_on_legacy();

}  // namespace odin_double
