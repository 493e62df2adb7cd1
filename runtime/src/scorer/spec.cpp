// What odin.json says of the network and of its scores.
#include <limits.h>

#include <algorithm>

#include "bundle.hpp"
#include "description.hpp"

namespace odin::detail {

namespace {

constexpr double kLeastTemperature = 1e-6, kMost = 1e9;  // as odin_engines/spec.py
constexpr int64_t kMostSize = 1 << 24;

Range range(const Description& description, const char* name) {
  description.numbers(name, 2);  // of which the next line may take two items
  const std::vector<Json>& sizes = description.optional(name)->items;
  const auto least = sizes[0].whole(), most = sizes[1].whole();
  if (!least || !most) description.wrong(name, "is not a smallest and a largest size");
  if (*least < 1 || *least > *most || *most > kMostSize) {
    description.wrong(name, "is a range that no image has");
  }
  return {static_cast<int32_t>(*least), static_cast<int32_t>(*most)};
}

double setting(const Description& description, const char* name, double least) {
  const double value = description.number(name);
  if (!(value >= least && value <= kMost)) {
    description.wrong(name, "is out of its range");
  }
  return value;
}

std::vector<double> quantiles(const Description& description) {
  std::vector<double> values = description.numbers("quantiles");
  if (values.size() < 2) description.wrong("quantiles", "are fewer than two");
  if (!std::is_sorted(values.begin(), values.end())) {
    description.wrong("quantiles", "do not ascend");
  }
  return values;
}

std::optional<Calibration> calibration(const std::string& file, const Description& description) {
  const Json* entry = description.optional("calibration");
  if (entry == nullptr) return std::nullopt;
  if (!entry->is(Json::Kind::kObject)) description.wrong("calibration", "is not a description");
  const Description inner(file, "calibration's ", *entry);
  return Calibration{description.number("threshold"),
                     inner.text("engine"),
                     inner.choice("precision", {"fp32", "fp16", "bf16"}),
                     inner.choice("method", {"exact", "first-order"}),
                     inner.number("temperature"),
                     inner.number("magnitude"),
                     inner.whole("images", 1, int64_t{1} << 53),
                     quantiles(inner)};
}

void read_scores(const Description& description, Spec& spec) {
  spec.method = description.choice("method", {"exact", "first-order"});
  spec.temperature = setting(description, "temperature", kLeastTemperature);
  spec.magnitude = setting(description, "magnitude", 0);
  spec.precision = description.choice("precision", {"fp32", "fp16", "bf16"});
  // Bundles of the first releases do not say what has this one value in them.
  spec.graph_precision = "fp32";
  if (description.optional("graph_precision") != nullptr) {
    spec.graph_precision = description.choice("graph_precision", {"fp32", "fp16", "bf16"});
  }
  if (spec.graph_precision != "fp32" && spec.graph_precision != spec.precision) {
    description.wrong("graph_precision", "is not the bundle's precision");
  }
  spec.input_type = "float32";
  if (description.optional("input_type") != nullptr) {
    spec.input_type = description.choice("input_type", {"float32", "uint8"});
  }
  const Json* further = description.optional("scores");
  if (further != nullptr && !further->is(Json::Kind::kList)) {
    description.wrong("scores", "is not a list of names");
  }
  spec.further_scores = further != nullptr && !further->items.empty();
  if (description.optional("tunable") != nullptr) spec.tunable = description.boolean("tunable");
}

void read_images(const Description& description, Spec& spec) {
  spec.channels = 3;
  if (description.optional("channels") != nullptr) {
    spec.channels = static_cast<int32_t>(description.whole("channels", 1, 4096));
  }
  spec.height = range(description, "height");
  spec.width = range(description, "width");
  spec.mean = description.numbers("mean", spec.channels);
  spec.std = description.numbers("std", spec.channels);
  if (*std::min_element(spec.std.begin(), spec.std.end()) <= 0) {
    description.wrong("std", "is not positive");
  }
  if (description.optional("activation_bytes") != nullptr) {
    spec.activation_bytes = description.whole("activation_bytes", 0, INT64_MAX);
  }
}

}  // namespace

Spec read_spec(const std::string& file, const Json& object) {
  const Description description(file, "", object);
  Spec spec;
  spec.model = description.text("model");
  spec.architecture = description.text("architecture");
  if (description.optional("in_dataset") != nullptr) {
    spec.in_dataset = description.text("in_dataset");
  }
  spec.classes = description.whole("classes", 1, INT32_MAX);
  read_scores(description, spec);
  read_images(description, spec);
  spec.calibration = calibration(file, description);
  return spec;
}

static PlanRecord read_plan(const std::string& file, const Json& object) {
  const Description plan(file, "a plan's ", object);
  return {plan.text("file"),
          plan.choice("form", {"fused", "split"}),
          plan.choice("engine", {"trt", "rtx"}),
          plan.text("version"),
          plan.text("device"),
          plan.choice("precision", {"fp32", "fp16", "bf16"}),
          plan.choice("hardware_compatibility", {"none", "ampere+", "same-cc"}),
          plan.text("graph"),
          plan.text("graph_sha256"),
          plan.texts("compute_capabilities")};
}

std::vector<PlanRecord> read_plans(const std::string& file, const Json& object) {
  const Description description(file, "", object);
  const Json* entries = description.optional("plans");
  std::vector<PlanRecord> plans;
  if (entries == nullptr) return plans;
  if (!entries->is(Json::Kind::kList)) description.wrong("plans", "is not a list");
  for (const Json& entry : entries->items) plans.push_back(read_plan(file, entry));
  return plans;
}

}  // namespace odin::detail
