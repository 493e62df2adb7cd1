#include "options.hpp"

#include <sys/stat.h>

#include "session.hpp"

namespace odin::detail {

namespace {

constexpr int32_t kMostThreads = 4096, kMostBatch = 65536, kMostDevices = 1023;
constexpr const char* kPrecisions[] = {"", "fp32", "bf16", "fp16"};  // "": the bundle's

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
  check_range("device", options.device, kMostDevices);
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

std::string chosen_engine(const Bundle& bundle, const odin_scorer_options& options,
                          const Log& log) {
  const bool automatic = options.engine == ODIN_ENGINE_AUTO;
  if (automatic || options.engine == ODIN_ENGINE_TENSORRT) {
    const auto problem = tensorrt_problem(bundle, kPrecisions[options.precision], options.device);
    if (!problem) return "trt";
    if (!automatic) throw *problem;
    if (kHasTensorRt && kHasOpenVino) log(ODIN_LOG_INFO, "OpenVINO is used: " + problem->text);
    if (kHasTensorRt && !kHasOpenVino) {
      fail(problem->status, "there is no other engine in this library than TensorRT, and %s",
           problem->text.c_str());
    }
  }
  if (!kHasOpenVino) {
    fail(ODIN_NO_ENGINE,
         "this library was built without OpenVINO: pip install openvino, and build it again");
  }
  return "openvino";
}

std::string chosen_precision(const Bundle& bundle, const std::string& engine,
                             odin_precision asked) {
  const Spec& spec = bundle.spec;
  const std::string precision = asked == ODIN_PRECISION_BUNDLE ? spec.precision
                                                               : kPrecisions[asked];
  if (engine == "trt") return precision;  // the plans', as `chosen_engine` has found
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
