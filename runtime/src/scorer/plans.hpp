// Which of a bundle's TensorRT plans are run: as runtime/odin_runtime/gpu_scorer.py chooses.
#pragma once

#include <set>
#include <string>

#include "bundle.hpp"

namespace odin::detail {

inline constexpr const char *kOdinGraph = "odin.onnx", *kGradientGraph = "gradient.onnx",
                            *kForwardGraph = "forward.onnx";

// "fused": one plan, images to scores. "split": a gradient plan and, for the exact method, a
// forward plan, with kernels of our own in between.
std::string chosen_form(const Bundle& bundle);

// The graphs that a form has a plan of.
std::vector<std::string> form_graphs(const std::string& form, const Spec& spec);

// The record of TensorRT's plan of a graph; null if there is none.
const PlanRecord* find_plan(const Bundle& bundle, const std::string& graph);

// The files of the chosen form's plans, of which there have to be all.
std::set<std::string> plan_files(const Bundle& bundle);

}  // namespace odin::detail
