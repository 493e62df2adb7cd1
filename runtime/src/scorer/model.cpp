#include "model.hpp"

#include <algorithm>

#include "plans.hpp"

namespace odin::detail {

namespace {

using nvinfer1::DataType;

constexpr size_t kFloat = sizeof(float);

size_t aligned(size_t bytes) {
  return (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment;
}

// A Failure if one of our kernels was not launched.
void check_kernel(odin_status status) {
  if (status != ODIN_OK) fail(status, "%s", odin_last_error());
}

DeviceBytes on_device(const std::vector<float>& values) {
  DeviceBytes memory(values.size() * kFloat);
  check_cuda(cudaMemcpy(memory.data(), values.data(), values.size() * kFloat,
                        cudaMemcpyHostToDevice),
             "copying constants to the GPU");
  // The copy returns when it has read the values; other streams would not wait for its end.
  check_cuda(cudaStreamSynchronize(nullptr), "copying constants to the GPU");
  return memory;
}

template <typename Value>
DeviceBytes of_channels(const Spec& spec, Value value) {
  std::vector<float> values;
  for (size_t c = 0; c < spec.mean.size(); ++c) {
    values.push_back(static_cast<float>(value(spec.mean[c], spec.std[c])));
  }
  return on_device(values);
}

Range common(Range a, Range b) { return {std::max(a.least, b.least), std::min(a.most, b.most)}; }

struct Wanted {
  const char* name;
  bool input;
  DataType type;
};

// A Failure unless the sizes for which memory is reserved are the bundle's.
void check_sizes(const Plan& plan, const Spec& spec) {
  for (const Tensor& tensor : plan.tensors()) {
    const bool images = tensor.name == "images" || tensor.name == "input_gradient";
    if (!images && tensor.name != "logits") continue;
    const int32_t axis = tensor.type == DataType::kUINT8 ? 3 : 1;
    const int64_t wanted = images ? spec.channels : spec.classes;
    if (tensor.shape.nbDims == (images ? 4 : 2) && tensor.shape.d[axis] == wanted) continue;
    fail(ODIN_ENGINE_FAILED, "%s has %s of other sizes than the bundle says, %lld %s; export the "
         "bundle again, and build it with '%s'", plan.file().c_str(), tensor.name.c_str(),
         static_cast<long long>(wanted), images ? "channels" : "classes", plan.remedy().c_str());
  }
}

// A Failure unless the tensors of a plan are those that the graph has, of the types that it has.
void check_tensors(const Plan& plan, const std::vector<Wanted>& wanted, bool further) {
  const auto wrong = [&](const std::string& what) {
    fail(ODIN_ENGINE_FAILED, "%s %s; export the bundle again, and build it with '%s'",
         plan.file().c_str(), what.c_str(), plan.remedy().c_str());
  };
  for (const Wanted& each : wanted) {
    const auto is_it = [&](const Tensor& tensor) {
      return tensor.name == each.name && tensor.input == each.input;
    };
    const auto& tensors = plan.tensors();
    const auto found = std::find_if(tensors.begin(), tensors.end(), is_it);
    if (found == tensors.end()) wrong(std::string("has no tensor ") + each.name);
    const bool raw = found->name == "images" && found->type == DataType::kUINT8 && further;
    if (found->type != each.type && !raw) wrong(found->name + " has another type than the graph's");
  }
  for (const Tensor& tensor : plan.tensors()) {
    const auto same = [&](const Wanted& each) { return tensor.name == each.name; };
    if (std::any_of(wanted.begin(), wanted.end(), same)) continue;
    const bool score = further && !tensor.input && tensor.type == DataType::kFLOAT &&
                       tensor.shape.nbDims == 1;
    if (!score) wrong("has a tensor " + tensor.name + " that is not wanted");
  }
}

}  // namespace

Constants::Constants(const Spec& spec, int64_t most)
    : scale(of_channels(spec, [](double, double std) { return 1 / (255 * std); })),
      offset(of_channels(spec, [](double mean, double std) { return mean / std; })),
      inverse_std(of_channels(spec, [](double, double std) { return 1 / std; })),
      one(on_device({1.0F})),
      zeros(on_device(std::vector<float>(static_cast<size_t>(most), 0.0F))),
      temperature(on_device({static_cast<float>(spec.temperature)})),
      magnitude(on_device({static_cast<float>(spec.magnitude)})) {}

Model::Model(Bundle& bundle, int32_t batch_size)
    : spec(bundle.spec), fused(chosen_form(bundle) == "fused") {
  const std::string remedy = "odin-export " + folder_argument(bundle.path) + " --engine trt";
  const auto open = [&](const char* graph) {
    const PlanRecord& record = *find_plan(bundle, graph);
    const std::string content = take_content(bundle, record.file);
    Plan plan(content, bundle.path + "/" + record.file, remedy);
    check_sizes(plan, spec);
    return plan;
  };
  const auto kFloat32 = DataType::kFLOAT;
  std::vector<Wanted> inputs = {{"images", true, kFloat32}};
  if (spec.tunable) inputs.push_back({"temperature", true, kFloat32});
  const auto with = [](std::vector<Wanted> all, std::initializer_list<Wanted> more) {
    all.insert(all.end(), more);
    return all;
  };
  if (fused) {
    odin.emplace(open(kOdinGraph));
    if (spec.tunable) inputs.push_back({"magnitude", true, kFloat32});
    check_tensors(*odin, with(inputs, {{"score", false, kFloat32},
                                       {"baseline", false, kFloat32},
                                       {"label", false, DataType::kINT64},
                                       {"logits", false, kFloat32}}), true);
    limits = odin->limits();
  } else {
    gradient.emplace(open(kGradientGraph));
    check_tensors(*gradient, with(inputs, {{"logits", false, kFloat32},
                                           {"input_gradient", false, kFloat32}}), false);
    limits = gradient->limits();
  }
  if (!fused && exact()) {
    forward.emplace(open(kForwardGraph));
    check_tensors(*forward, {{"images", true, kFloat32}, {"logits", false, kFloat32}}, false);
    const ImageLimits& more = forward->limits();
    limits = {common(limits.count, more.count), common(limits.height, more.height),
              common(limits.width, more.width)};
  }
  limits.height = common(limits.height, spec.height);
  limits.width = common(limits.width, spec.width);
  for (const Range& each : {limits.count, limits.height, limits.width}) {
    if (each.least >= 1 && each.least <= each.most) continue;
    fail(ODIN_ENGINE_FAILED, "the plans of %s take no images in common; build them together with "
         "'%s'", bundle.path.c_str(), remedy.c_str());
  }
  if (batch_size > 0) {
    limits.count.most = std::clamp(batch_size, limits.count.least, limits.count.most);
  }
  constants.emplace(spec, limits.count.most);
}

int64_t Model::most_pixels() const {
  int64_t pixels = limits.count.most;
  for (const int64_t size : {int64_t{limits.height.most}, int64_t{limits.width.most},
                             int64_t{spec.channels}, int64_t{4}}) {
    if (__builtin_mul_overflow(pixels, size, &pixels)) {
      fail(ODIN_BAD_SIZE, "the plans take more values than fit in 63 bits; build them again with a "
           "smaller --maxShapes");
    }
  }
  return pixels / 4;
}

Workspace::Workspace(const Model& model) : model_(model) {
  const auto most = static_cast<size_t>(model.limits.count.most);
  const auto classes = static_cast<size_t>(model.spec.classes);
  const size_t images = static_cast<size_t>(model.most_pixels()) * kFloat;
  score_offset_ = aligned(most * sizeof(int64_t));
  baseline_offset_ = score_offset_ + aligned(most * kFloat);
  results_bytes_ = baseline_offset_ + aligned(most * kFloat);
  results_ = DeviceBytes(results_bytes_);
  logits_ = DeviceBytes(most * classes * kFloat);
  if (!model.raw_only()) {
    normalised_ = DeviceBytes(images);
    unmarked_ = DeviceBytes(results_bytes_);
    nan_ = DeviceBytes(most * kFloat);
  }
  size_t work = 0;
  for (const auto* plan : {&model.odin, &model.gradient, &model.forward}) {
    if (*plan) work = std::max(work, (*plan)->work_bytes());
  }
  work_ = DeviceBytes(work);  // of all plans: they run one after the other
  if (model.odin) {
    further_ = DeviceBytes(model.odin->tensors().size() * aligned(most * kFloat));
    odin_.emplace(*model.odin, work_.data());
    return;
  }
  gradient_ = DeviceBytes(images);
  gradient_run_.emplace(*model.gradient, work_.data());
  if (model.forward) {
    perturbed_ = DeviceBytes(images);
    perturbed_logits_ = DeviceBytes(most * classes * kFloat);
    forward_run_.emplace(*model.forward, work_.data());
  } else {
    probability_ = DeviceBytes(most * kFloat);
    total_ = DeviceBytes(most * kFloat);
  }
}

void Workspace::enqueue(const DevicePart& part, cudaStream_t stream) {
  const void* images = part.images;
  const Constants& constants = *model_.constants;
  if (part.raw && !model_.raw_only()) {
    check_kernel(odin_normalize(ODIN_F32, static_cast<const uint8_t*>(images), normalised_.data(),
                                constants.scale.as<float>(), constants.offset.as<float>(),
                                part.count, part.height * part.width, model_.spec.channels,
                                stream));
    images = normalised_.data();
  }
  if (model_.fused) {
    run_fused(part, images, stream);
  } else {
    run_split(part, images, stream);
  }
  if (!part.raw) mark(part, stream);
}

// The shape of a part, for a plan.
static nvinfer1::Dims shape_of(const DevicePart& part, int64_t channels, bool raw) {
  if (raw) return {4, {part.count, part.height, part.width, channels}};
  return {4, {part.count, channels, part.height, part.width}};
}

void Workspace::run_fused(const DevicePart& part, const void* images, cudaStream_t stream) {
  // Raw pixels are finite: their results need no mark.
  const DeviceBytes& rows = part.raw ? results_ : unmarked_;
  std::vector<Place> places = {{"images", const_cast<void*>(images)},
                               {"score", rows.as<float>(score_offset_)},
                               {"baseline", rows.as<float>(baseline_offset_)},
                               {"label", results_.data()},
                               {"logits", logits_.data()}};
  const Constants& constants = *model_.constants;
  size_t further = 0;
  for (const Tensor& tensor : model_.odin->tensors()) {
    const auto same = [&](const Place& place) { return tensor.name == place.name; };
    if (std::any_of(places.begin(), places.end(), same)) continue;
    void* memory = tensor.name == "temperature" ? constants.temperature.data()
                                                : constants.magnitude.data();
    if (!tensor.input) {
      // Each in a place of its own, though nobody reads them: the plan may make one of another, as
      // the baseline of msp, which is the same.
      memory = further_.as<void>(further);
      further += aligned(static_cast<size_t>(model_.limits.count.most) * kFloat);
    }
    places.push_back({tensor.name.c_str(), memory});
  }
  odin_->enqueue(places, shape_of(part, model_.spec.channels, model_.raw_only()), stream);
}

void Workspace::run_split(const DevicePart& part, const void* images, cudaStream_t stream) {
  const Spec& spec = model_.spec;
  const Constants& constants = *model_.constants;
  std::vector<Place> places = {{"images", const_cast<void*>(images)},
                               {"logits", logits_.data()},
                               {"input_gradient", gradient_.data()}};
  if (spec.tunable) places.push_back({"temperature", constants.temperature.data()});
  gradient_run_->enqueue(places, shape_of(part, spec.channels, false), stream);
  const DeviceBytes& rows = part.raw ? results_ : unmarked_;
  check_kernel(odin_score(ODIN_F32, logits_.data(),
                          model_.exact() ? nullptr : probability_.as<float>(),
                          rows.as<float>(baseline_offset_), results_.as<int64_t>(), nullptr,
                          nullptr, static_cast<float>(spec.temperature), 1, part.count,
                          spec.classes, stream));
  if (model_.exact()) {
    exact_scores(part, images, stream);
    return;
  }
  // The plan has divided its gradient by temperature and seed scale, so the step is the magnitude.
  check_kernel(odin_first_order(ODIN_F32, gradient_.data(), constants.inverse_std.as<float>(),
                                nullptr, nullptr, total_.as<float>(), nullptr, part.count,
                                part.height * part.width, spec.channels, 0, stream));
  grow(total_.as<float>(), probability_.as<float>(), constants.magnitude.as<float>(),
       rows.as<float>(score_offset_), part.count, stream);
}

void Workspace::exact_scores(const DevicePart& part, const void* images, cudaStream_t stream) {
  const Spec& spec = model_.spec;
  const Constants& constants = *model_.constants;
  const DeviceBytes& rows = part.raw ? results_ : unmarked_;
  check_kernel(odin_perturb(ODIN_F32, images, gradient_.data(), perturbed_.data(),
                            constants.magnitude.as<float>(), constants.inverse_std.as<float>(),
                            nullptr, nullptr, part.count, part.height * part.width, spec.channels,
                            1, stream));
  forward_run_->enqueue({{"images", perturbed_.data()}, {"logits", perturbed_logits_.data()}},
                        shape_of(part, spec.channels, false), stream);
  check_kernel(odin_score(ODIN_F32, perturbed_logits_.data(), rows.as<float>(score_offset_),
                          nullptr, nullptr, nullptr, nullptr,
                          static_cast<float>(spec.temperature), 1, part.count, spec.classes,
                          stream));
}

// The first-order kernel does it: p exp(0 sum |x|) is p, and NaN if a value is NaN or infinite.
// With p = 0 that makes one number an image, and with that in place of the image it does the same
// to each row.
void Workspace::mark(const DevicePart& part, cudaStream_t stream) {
  const Constants& constants = *model_.constants;
  const auto* zeros = constants.zeros.as<float>();
  check_kernel(odin_first_order(ODIN_F32, part.images, constants.inverse_std.as<float>(), zeros,
                                zeros, nullptr, nan_.as<float>(), part.count,
                                part.height * part.width, model_.spec.channels, 1, stream));
  for (const size_t row : {score_offset_, baseline_offset_}) {
    grow(nan_.as<float>(), unmarked_.as<float>(row), zeros, results_.as<float>(row), part.count,
         stream);
  }
}

// score = probability exp(step sum), where there is one sum of each image.
void Workspace::grow(const float* sums, const float* probability, const float* step, float* score,
                     int64_t count, cudaStream_t stream) const {
  check_kernel(odin_first_order(ODIN_F32, sums, model_.constants->one.as<float>(), probability,
                                step, nullptr, score, count, 1, 1, 1, stream));
}

}  // namespace odin::detail
