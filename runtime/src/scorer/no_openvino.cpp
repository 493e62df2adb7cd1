// In place of openvino.cpp where OpenVINO is not found.
#include "session.hpp"

namespace odin::detail {

const bool kHasOpenVino = false;

std::unique_ptr<Session> open_openvino(Bundle&, const SessionOptions&) {
  fail(ODIN_NO_ENGINE, "the library was built without OpenVINO");
}

}  // namespace odin::detail
