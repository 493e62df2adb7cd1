// Stream capture and graphs.
#include <algorithm>

#include "double.hpp"

namespace odin_double {

static CUresult begin_capture(Stream& stream, CUstreamCaptureMode mode) {
  if (stream.capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (&stream == &state().legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  auto graph = std::make_shared<Graph>();
  graph->id = state().next_id++;
  stream.capture = std::make_shared<Capture>(Capture{graph, {}});
  stream.captures_here = true;
  stream.mode = mode;
  stream.capturer = std::this_thread::get_id();
  return CUDA_SUCCESS;
}

static void mark_ancestors(const Graph& graph, const std::vector<int>& nodes, std::set<int>* seen) {
  for (int node : nodes)
    if (seen->insert(node).second)
      mark_ancestors(graph, graph.nodes[static_cast<size_t>(node)].after, seen);
}

static CUresult end_capture(Stream& stream, CUgraph* out) {
  if (!stream.captures_here) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream.mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      stream.capturer != std::this_thread::get_id())
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  const std::shared_ptr<Graph> graph = stream.capture->graph;
  std::set<int> joined;
  mark_ancestors(*graph, stream.capture->last, &joined);
  for (Stream* other : all_streams())
    if (other->capture != nullptr && other->capture->graph == graph) other->capture = nullptr;
  stream.captures_here = false;
  graph->ended = true;
  *out = nullptr;
  if (graph->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (joined.size() != graph->nodes.size()) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  state().graphs[graph.get()] = graph;
  *out = reinterpret_cast<CUgraph>(graph.get());
  return CUDA_SUCCESS;
}

// Does the nodes in an order that their dependencies allow, drawn at random.
static CUresult run_nodes(const Graph& graph, Lock& lock) {
  std::vector<bool> finished(graph.nodes.size(), false);
  for (size_t count = 0; count < graph.nodes.size(); count++) {
    std::vector<size_t> candidates;
    for (size_t i = 0; i < graph.nodes.size(); i++) {
      const auto& after = graph.nodes[i].after;
      const bool free = std::all_of(after.begin(), after.end(), [&](int node) {
        return finished[static_cast<size_t>(node)];
      });
      if (!finished[i] && free) candidates.push_back(i);
    }
    const size_t chosen =
        candidates[static_cast<size_t>(choose(static_cast<int>(candidates.size())))];
    const Operation& work = graph.nodes[chosen].operation;
    state().log.push_back(text("run ", work.what, " graph=g", graph.id));
    if (const CUresult result = work.run(lock)) return result;
    finished[chosen] = true;
  }
  return CUDA_SUCCESS;
}

static CUresult release(UserObject* object, long count, Lock& lock) {
  if (state().user_objects.count(object) == 0) return CUDA_ERROR_INVALID_HANDLE;
  object->references -= count;
  if (object->references > 0) return CUDA_SUCCESS;
  state().user_objects.erase(object);
  lock.unlock();  // the caller's code
  object->destroy(object->pointer);
  lock.lock();
  return CUDA_SUCCESS;
}

using Graphs = std::map<Graph*, std::shared_ptr<Graph>>;

static CUresult destroy(Graphs& graphs, void* handle, Lock& lock) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;  // of a capture that failed
  const auto found = graphs.find(static_cast<Graph*>(handle));
  if (found == graphs.end()) {
    record_error("a graph was destroyed that does not exist");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  const std::shared_ptr<Graph> graph = found->second;  // queued launches keep it
  graphs.erase(found);
  for (const auto& [object, count] : graph->kept) release(object, count, lock);
  return CUDA_SUCCESS;
}

static CUresult instantiate(CUgraphExec* out, CUgraph handle) {
  const auto found = state().graphs.find(reinterpret_cast<Graph*>(handle));
  if (found == state().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  auto executable = std::make_shared<Graph>(*found->second);
  executable->id = state().next_id++;
  for (const auto& [object, count] : executable->kept) object->references += count;
  state().executables[executable.get()] = executable;
  *out = reinterpret_cast<CUgraphExec>(executable.get());
  return CUDA_SUCCESS;
}

static std::string graph_name(const void* handle) {
  auto* graph = static_cast<Graph*>(const_cast<void*>(handle));
  const bool known = state().graphs.count(graph) + state().executables.count(graph) != 0;
  return known ? text("g", graph->id) : "unknown";
}

}  // namespace odin_double

using namespace odin_double;

extern "C" {

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  ENTER("cuStreamBeginCapture", "stream=", stream_name(handle), " mode=", int{mode});
  Stream* stream = find_stream(handle);
  return stream != nullptr ? begin_capture(*stream, mode) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  ENTER("cuStreamEndCapture", "stream=", stream_name(handle));
  Stream* stream = find_stream(handle);
  return stream != nullptr ? end_capture(*stream, graph) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  ENTER("cuStreamIsCapturing", "stream=", stream_name(handle));
  const Stream* stream = find_stream(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (stream == &state().legacy && capture_depends_on_legacy())
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  *status = stream->capture == nullptr         ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->graph->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                               : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id,
                                CUgraph* graph, const CUgraphNode** nodes,
                                const CUgraphEdgeData** edges, size_t* count) {
  if (const CUresult result = cuStreamIsCapturing(handle, status)) return result;
  Lock lock(state().mutex);
  const Stream* stream = find_stream(handle);
  const bool active = stream->capture != nullptr;
  if (id != nullptr) *id = active ? static_cast<cuuint64_t>(stream->capture->graph->id) : 0;
  if (graph != nullptr)
    *graph = active ? reinterpret_cast<CUgraph>(stream->capture->graph.get()) : nullptr;
  if (nodes != nullptr) *nodes = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  ENTER("cuGraphInstantiate", "graph=", graph_name(graph), " flags=", flags);
  return instantiate(out, graph);
}

#undef cuGraphInstantiate  // the header's name for the one above; entry points are asked for by it
CUresult cuGraphInstantiate(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  return cuGraphInstantiateWithFlags(out, graph, flags);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
  ENTER("cuGraphInstantiate", "graph=", graph_name(graph), " flags=", parameters->flags);
  parameters->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  parameters->hErrNode_out = nullptr;
  return instantiate(out, graph);
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream on) {
  ENTER("cuGraphLaunch", "graph=", graph_name(handle), " stream=", stream_name(on));
  const auto found = state().executables.find(reinterpret_cast<Graph*>(handle));
  Stream* stream = find_stream(on);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (found == state().executables.end()) {
    record_error("launch of a graph that does not exist");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  Operation work;
  work.what = text("graph g", found->second->id);
  work.run = [graph = found->second](Lock& lock) { return run_nodes(*graph, lock); };
  return enqueue(*stream, std::move(work));
}

CUresult cuGraphUpload(CUgraphExec graph, CUstream stream) {
  ENTER("cuGraphUpload", "graph=", graph_name(graph), " stream=", stream_name(stream));
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  ENTER("cuGraphDestroy", "graph=", graph_name(graph));
  return destroy(state().graphs, graph, call.lock());
}

CUresult cuGraphExecDestroy(CUgraphExec graph) {
  ENTER("cuGraphExecDestroy", "graph=", graph_name(graph));
  return destroy(state().executables, graph, call.lock());
}

CUresult cuUserObjectCreate(CUuserObject* out, void* pointer, CUhostFn destroy, unsigned count,
                            unsigned) {
  ENTER("cuUserObjectCreate", "");
  auto* object = new UserObject{pointer, destroy, count};
  state().user_objects.insert(object);
  *out = reinterpret_cast<CUuserObject>(object);
  return CUDA_SUCCESS;
}

CUresult cuUserObjectRelease(CUuserObject object, unsigned count) {
  ENTER("cuUserObjectRelease", "count=", count);
  return release(reinterpret_cast<UserObject*>(object), count, call.lock());
}

CUresult cuGraphRetainUserObject(CUgraph handle, CUuserObject which, unsigned count,
                                 unsigned flags) {
  ENTER("cuGraphRetainUserObject", "graph=", graph_name(handle), " count=", count);
  auto* object = reinterpret_cast<UserObject*>(which);
  const auto graph = state().graphs.find(reinterpret_cast<Graph*>(handle));
  if (graph == state().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  graph->second->kept[object] += count;
  if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) object->references += count;
  return CUDA_SUCCESS;
}

CUresult cuGraphReleaseUserObject(CUgraph handle, CUuserObject which, unsigned count) {
  ENTER("cuGraphReleaseUserObject", "graph=", graph_name(handle), " count=", count);
  auto* object = reinterpret_cast<UserObject*>(which);
  const auto graph = state().graphs.find(reinterpret_cast<Graph*>(handle));
  if (graph == state().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  auto& kept = graph->second->kept;
  if ((kept[object] -= count) <= 0) kept.erase(object);
  return release(object, count, call.lock());
}

}  // extern "C"
