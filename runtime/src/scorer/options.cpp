#include "options.hpp"

#include <sys/stat.h>

#include "session.hpp"

namespace odin::detail {

namespace {

constexpr int32_t kMostThreads = 4096, kMostBatch = 65536;

void check_range(const char* name, int32_t value, int32_t most) {
  if (value < 0 || value > most) {
    fail(ODIN_BAD_VALUE, "options.%s is %d; it must be from 0 to %d", name, value, most);
  }
}

}  // namespace

odin_scorer_options checked_options(const odin_scorer_options* given) {
  if (given == nullptr) return odin_scorer_options{};
  const auto options =
      whole_struct(given, "odin_scorer_options", sizeof(odin_scorer_options));
  check_range("engine", options.engine, ODIN_ENGINE_TENSORRT);
  check_range("precision", options.precision, ODIN_PRECISION_FP16);
  check_range("threads", options.threads, kMostThreads);
  check_range("streams", options.streams, kMostThreads);
  check_range("batch_size", options.batch_size, kMostBatch);
  check_range("reserved", options.reserved, 0);
  if (options.threads > 0 && options.streams > options.threads) {
    fail(ODIN_BAD_VALUE, "options.streams is %d, of %d threads; each takes one at least",
         options.streams, options.threads);
  }
  struct stat status {};
  if (options.cache != nullptr &&
      (stat(options.cache, &status) != 0 || !S_ISDIR(status.st_mode))) {
    fail(ODIN_NOT_FOUND, "options.cache is %s, which is no folder; make it, or give NULL",
         options.cache);
  }
  return options;
}

std::string chosen_engine(odin_engine asked) {
  if (asked == ODIN_ENGINE_TENSORRT) {
    fail(ODIN_NO_ENGINE,
         "this library was built without TensorRT: use ODIN_ENGINE_OPENVINO, or the Python package "
         "on a GPU");
  }
  if (!kHasOpenVino) {
    fail(ODIN_NO_ENGINE,
         "this library was built without OpenVINO: pip install openvino, and build it again");
  }
  return "openvino";
}

std::string chosen_precision(const Bundle& bundle, odin_precision asked) {
  const Spec& spec = bundle.spec;
  const char* const names[] = {spec.precision.c_str(), "fp32", "bf16", "fp16"};
  const std::string precision = names[asked];
  const bool converted = spec.graph_precision == "fp32" && precision != "fp16";
  if (precision != spec.graph_precision && !converted) {
    fail(ODIN_UNSUPPORTED,
         "precision %s: the graphs of bundle %s are written in %s, which engine openvino does not "
         "change; use ODIN_PRECISION_BUNDLE, or export another bundle with --precision %s",
         precision.c_str(), bundle.path.c_str(), spec.graph_precision.c_str(), precision.c_str());
  }
  return precision;
}

}  // namespace odin::detail
