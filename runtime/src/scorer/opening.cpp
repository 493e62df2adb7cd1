#include "opening.hpp"

#include <new>
#include <set>

#include "decision.hpp"
#include "options.hpp"
#include "plans.hpp"

namespace odin::detail {

namespace {

// In float32 engines differ by rounding alone; in half precision some images' labels change.
void warn_of_drift(const odin_scorer& scorer, const Log& log) {
  if (!scorer.calibrated) return;
  const auto& known = *scorer.bundle.spec.calibration;
  const bool same_engine = known.engine == scorer.engine;
  if (known.precision == scorer.precision && (known.precision == "fp32" || same_engine)) return;
  log(ODIN_LOG_WARNING, "the bundle was calibrated in " + known.precision + " by " + known.engine +
                            ", and is opened in " + scorer.precision + " by " + scorer.engine +
                            ": scores near the threshold may fall on its other side; calibrate "
                            "with the engine and the precision that are to decide");
}

odin_scorer* placed(odin_scorer scorer) {
  const odin_allocator allocator = scorer.allocator;
  void* memory = allocator.allocate(allocator.context, sizeof(odin_scorer), kAlignment);
  if (memory == nullptr) throw std::bad_alloc();
  return new (memory) odin_scorer(std::move(scorer));
}

// The engine, with the content of its files read: plans that are damaged are none.
std::string verified_engine(Bundle& bundle, const odin_scorer_options& options, const Log& log) {
  const std::string engine = chosen_engine(bundle, options, log);
  std::set<std::string> kept;
  if (engine == "trt") kept = plan_files(bundle);
  if (engine == "openvino" || options.engine == ODIN_ENGINE_AUTO) {
    kept.insert(graph_for(bundle, "openvino"));
  }
  verify_files(bundle, kept);
  for (const auto& [name, problem] : bundle.damaged) log(ODIN_LOG_WARNING, problem.text);
  if (engine != "trt" || options.engine != ODIN_ENGINE_AUTO || !kHasOpenVino) return engine;
  for (const std::string& name : plan_files(bundle)) {
    const auto damage = bundle.damaged.find(name);
    if (damage == bundle.damaged.end()) continue;
    log(ODIN_LOG_INFO, "OpenVINO is used: " + damage->second.text);
    return "openvino";
  }
  return engine;
}

}  // namespace

odin_scorer* opened(const char* path, const odin_scorer_options& options) {
  const Log log = {options.log, options.log_context};
  const odin_allocator allocator = whole_allocator(options.allocator);
  Bundle bundle = describe_bundle(path);
  const std::string engine = verified_engine(bundle, options, log);
  const std::string precision = chosen_precision(bundle, engine, options.precision);
  const SessionOptions session_options = {precision,
                                          options.threads,
                                          options.streams,
                                          options.batch_size,
                                          options.device,
                                          options.cache == nullptr ? "" : options.cache,
                                          allocator,
                                          log};
  auto session = engine == "trt" ? open_tensorrt(bundle, session_options)
                                 : open_openvino(bundle, session_options);
  bundle.contents.clear();
  const bool calibrated = is_calibrated(bundle.spec);
  odin_scorer scorer{std::move(bundle), engine, precision, calibrated, allocator,
                     std::move(session)};
  warn_of_drift(scorer, log);
  log(ODIN_LOG_DEBUG, "opened " + scorer.bundle.path + " with " + engine + " in " + precision);
  return placed(std::move(scorer));
}

}  // namespace odin::detail
