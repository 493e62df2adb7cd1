// The launchers on the double of CUDA: the host twin, when the stream has come so far.
#include "double.hpp"
#include "enqueue.hpp"

namespace odin {

const bool kHasCuda = true;

template <typename Arguments>
odin_status enqueue(const char* function, const Arguments& arguments, void* stream) {
  if (odin_double::fails(function)) return fail(ODIN_CUDA_FAILED, function, "the double fails");
  odin_double::launch(static_cast<cudaStream_t>(stream), [arguments] { run_on_host(arguments); });
  return ODIN_OK;
}

ODIN_ENQUEUE_ALL(float)
ODIN_ENQUEUE_ALL(Half)
ODIN_ENQUEUE_ALL(Bfloat16)

}  // namespace odin
