// In place of tensorrt.cpp where TensorRT's headers are not found.
#include "session.hpp"

namespace odin::detail {

const bool kHasTensorRt = false;

std::optional<Failure> tensorrt_problem(const Bundle&, const std::string&, int32_t) {
  return Failure{ODIN_NO_ENGINE,
                 "this library was built without TensorRT: use ODIN_ENGINE_OPENVINO, or build it "
                 "again with -DODIN_TENSORRT=ON, which tells what is missing"};
}

std::unique_ptr<Session> open_tensorrt(Bundle&, const SessionOptions&) {
  fail(ODIN_NO_ENGINE, "the library was built without TensorRT");
}

}  // namespace odin::detail
