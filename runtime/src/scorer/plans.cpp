#include "plans.hpp"

namespace odin::detail {

std::string chosen_form(const Bundle& bundle) {
  if (bundle.spec.further_scores) return "fused";  // split plans do not give them
  const bool split_first = bundle.spec.tunable;
  const char* const first = split_first ? "split" : "fused";
  const char* const second = split_first ? "fused" : "split";
  const auto has = [&](const char* form) {
    return find_plan(bundle, form_graphs(form, bundle.spec).front()) != nullptr;
  };
  return !has(first) && has(second) ? second : first;
}

std::vector<std::string> form_graphs(const std::string& form, const Spec& spec) {
  if (form == "fused") return {kOdinGraph};
  if (spec.method == "exact") return {kGradientGraph, kForwardGraph};
  return {kGradientGraph};
}

const PlanRecord* find_plan(const Bundle& bundle, const std::string& graph) {
  for (const PlanRecord& plan : bundle.plans) {
    if (plan.engine == "trt" && plan.graph == graph) return &plan;
  }
  return nullptr;
}

std::set<std::string> plan_files(const Bundle& bundle) {
  std::set<std::string> files;
  for (const std::string& graph : form_graphs(chosen_form(bundle), bundle.spec)) {
    files.insert(find_plan(bundle, graph)->file);
  }
  return files;
}

}  // namespace odin::detail
