// The launchers of a library that was built without nvcc.
#include "enqueue.hpp"

namespace odin {

const bool kHasCuda = false;

template <typename Arguments>
odin_status enqueue(const char* function, const Arguments&, void*) {
  return fail(ODIN_NO_CUDA, function,
              "built without nvcc; install the CUDA compiler, configure and build again, or call "
              "%s_host",
              function);
}

ODIN_ENQUEUE_ALL(float)
ODIN_ENQUEUE_ALL(Half)
ODIN_ENQUEUE_ALL(Bfloat16)

}  // namespace odin
