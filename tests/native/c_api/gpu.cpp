// A program that scores images on the test doubles of CUDA and TensorRT.
//
//   gpu score BUNDLE FILE u8|f32 COUNT HEIGHT WIDTH HOW [NAME=VALUE ...]
//   gpu threads BUNDLE FILE COUNT HEIGHT WIDTH THREADS ROUNDS
//   gpu wrong BUNDLE
//
// HOW is host, device (images and scores), images, scores (these alone), enqueue (on a stream),
// default (enqueue on the default stream) or captured (enqueue on one that is being captured). A NAME is engine, precision,
// streams, batch, device, offset (bytes before the images on the device), repeat, grow (the first
// image, then two, ...: `repeat` of them at last), or a function of the double: its call VALUE, counted from 0 after the opening, fails, or `open:NAME` from the
// start. Printed are a line for each image: score, baseline, label, decision and percentile (-1:
// none), logits. Then the log, what the doubles have against it, and how many things are alive.
#include <odin/odin.hpp>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>

#include "double.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("the program's own call of CUDA fails: %d\n", error);
  std::exit(3);
}

// Memory of the device, freed with this.
class OnDevice {
 public:
  explicit OnDevice(std::size_t bytes) { check(cudaMalloc(&memory_, bytes > 0 ? bytes : 1)); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(memory_); }

  template <typename T = std::uint8_t>
  T* as(std::size_t offset = 0) const {
    return reinterpret_cast<T*>(static_cast<std::uint8_t*>(memory_) + offset);
  }

 private:
  void* memory_ = nullptr;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

struct Log {
  std::mutex lock;
  std::string text;
};

void tell(void* context, odin_log_level level, const char* text) {
  auto& log = *static_cast<Log*>(context);
  const std::lock_guard<std::mutex> guard(log.lock);
  log.text += "log " + std::to_string(level) + " " + text + "\n";
}

struct Results {
  std::vector<float> score, baseline, logits, percentile;
  std::vector<std::int64_t> label;
  std::vector<std::uint8_t> is_ood;

  Results(std::size_t count, std::size_t classes)
      : score(count), baseline(count), logits(count * classes), percentile(count, -1),
        label(count), is_ood(count, 255) {}

  odin_scores targets(bool calibrated) {
    odin_scores scores{};
    scores.size = sizeof scores;
    scores.score = score.data();
    scores.baseline = baseline.data();
    scores.label = label.data();
    scores.logits = logits.data();
    if (calibrated) {
      scores.is_ood = is_ood.data();
      scores.percentile = percentile.data();
    }
    return scores;
  }
};

// Results on the device, each in memory of its own.
struct DeviceResults {
  OnDevice score, baseline, label, logits;

  DeviceResults(std::size_t count, std::size_t classes)
      : score(count * 4), baseline(count * 4), label(count * 8), logits(count * classes * 4) {}

  odin_scores targets() const {
    odin_scores scores{};
    scores.size = sizeof scores;
    scores.memory = ODIN_DEVICE;
    scores.score = score.as<float>();
    scores.baseline = baseline.as<float>();
    scores.label = label.as<std::int64_t>();
    scores.logits = logits.as<float>();
    return scores;
  }

  void read(Results& results, cudaStream_t stream) const {
    const auto copy = [&](auto& to, const OnDevice& from) {
      check(cudaMemcpyAsync(to.data(), from.as<void>(), to.size() * sizeof to[0],
                            cudaMemcpyDeviceToHost, stream));
    };
    copy(results.score, score);
    copy(results.baseline, baseline);
    copy(results.label, label);
    copy(results.logits, logits);
    check(cudaStreamSynchronize(stream));
  }
};

Bytes read(const char* name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

odin_images batch(char** arguments) {
  odin_images images{};
  images.size = sizeof images;
  images.count = std::atoll(arguments[0]);
  images.height = std::atoll(arguments[1]);
  images.width = std::atoll(arguments[2]);
  images.channels = 3;
  return images;
}

using Settings = std::map<std::string, int>;

int setting(const Settings& settings, const char* name, int otherwise = 0) {
  const auto found = settings.find(name);
  return found == settings.end() ? otherwise : found->second;
}

odin_status score_once(odin_scorer* scorer, odin_images images, const Bytes& pixels,
                       const std::string& how, const Settings& settings, Results& results,
                       std::size_t classes, bool calibrated) {
  const bool queued = how == "enqueue" || how == "default" || how == "captured";
  const bool images_there = queued || how == "device" || how == "images";
  const bool scores_there = queued || how == "device" || how == "scores";
  const auto offset = static_cast<std::size_t>(setting(settings, "offset"));
  const OnDevice copy(pixels.size() + offset);
  const DeviceResults there(results.score.size(), classes);
  Stream other;
  images.data = pixels.data();
  if (images_there) {
    images.data = copy.as(offset);
    images.memory = ODIN_DEVICE;
    check(cudaMemcpyAsync(copy.as(offset), pixels.data(), pixels.size(), cudaMemcpyHostToDevice,
                          how == "default" ? nullptr : other.get()));
    if (!queued) check(cudaStreamSynchronize(other.get()));
  }
  odin_scores scores = scores_there ? there.targets() : results.targets(calibrated);
  if (how == "captured") odin_double::capture(other.get());
  auto* const stream = how == "default" ? nullptr : other.get();
  const odin_status status = queued ? odin_scorer_enqueue(scorer, &images, &scores, stream)
                                    : odin_scorer_score(scorer, &images, &scores);
  if (status == ODIN_OK && scores_there) there.read(results, stream);
  if (status != ODIN_OK && settings.count("repeat") != 0 && odin_double::pending() != 0) {
    odin_double::fault("work is left of a call that failed");
  }
  return status;
}

int score(int count, char** arguments) {
  Settings settings;
  for (int i = 7; i < count; ++i) {
    const std::string text = arguments[i];
    const std::size_t at = text.find('=');
    settings[text.substr(0, at)] = std::atoi(text.c_str() + at + 1);
  }
  for (const auto& [name, value] : settings) {
    if (name.rfind("open:", 0) == 0) odin_double::fail(name.substr(5), value);
  }
  Log log;
  odin_scorer_options options{};
  options.size = sizeof options;
  options.engine = setting(settings, "engine", ODIN_ENGINE_TENSORRT);
  options.precision = setting(settings, "precision");
  options.streams = setting(settings, "streams");
  options.batch_size = setting(settings, "batch");
  options.device = setting(settings, "device");
  options.log = tell;
  options.log_context = &log;
  odin_scorer* scorer = nullptr;
  odin_status status = odin_scorer_open(arguments[0], &options, &scorer);
  odin_images images = batch(arguments + 3);
  images.type = std::strcmp(arguments[2], "u8") == 0 ? ODIN_U8_NHWC : ODIN_F32_NCHW;
  if (status == ODIN_OK) {
    odin_scorer_info info{};
    info.size = sizeof info;
    odin_scorer_get_info(scorer, &info);
    std::printf("info %s %s %d %d %d %d %d %d\n", info.engine, info.precision, info.batch_size,
                info.least_height, info.most_height, info.least_width, info.most_width,
                info.calibrated);
    for (const auto& [name, value] : settings) odin_double::fail(name, value);
    const auto classes = static_cast<std::size_t>(info.classes);
    cudaSetDevice(setting(settings, "device"));  // of the program's own memory
    for (int i = 0; i < setting(settings, "repeat", 1); ++i) {
      if (setting(settings, "grow") != 0) images.count = i + 1;
      Results results(static_cast<std::size_t>(images.count), classes);
      status = score_once(scorer, images, read(arguments[1]), arguments[6], settings, results,
                          classes, info.calibrated != 0);
      if (status != ODIN_OK) {
        std::printf("failed %d %s\n", status, odin_scorer_last_error());
        continue;
      }
      for (std::size_t n = 0; n < results.score.size(); ++n) {
        std::printf("row %.9g %.9g %lld %d %.9g", results.score[n], results.baseline[n],
                    static_cast<long long>(results.label[n]),
                    results.is_ood[n] == 255 ? -1 : results.is_ood[n], results.percentile[n]);
        for (std::size_t k = 0; k < classes; ++k) {
          std::printf(" %.9g", results.logits[n * classes + k]);
        }
        std::printf("\n");
      }
    }
    cudaSetDevice(1);  // closing leaves it alone, too
    odin_scorer_close(scorer);
    int current = -1;
    cudaGetDevice(&current);
    if (current != 1) std::printf("fault the current device is %d\n", current);
  } else {
    std::printf("failed %d %s\n", status, odin_scorer_last_error());
  }
  std::printf("lanes %d\n%s", odin_double::streams() - setting(settings, "repeat", 1),
              log.text.c_str());
  std::printf("faults %s\nalive %d\n", odin_double::faults().c_str(), odin_double::alive());
  return 0;
}

// Each thread scores other parts of the images in turn in all ways, on a stream of its own.
double from_thread(const odin::Scorer& scorer, const odin_images& all, const Bytes& pixels,
                   const odin::Scores& wanted, std::size_t thread, int rounds) {
  const auto total = static_cast<std::size_t>(all.count);
  const std::size_t size = static_cast<std::size_t>(all.height * all.width) * 3;
  const std::size_t classes = wanted.logits.size() / total;
  double most = 0;
  for (int round = 0; round < rounds; ++round) {
    const std::size_t first = (thread + static_cast<std::size_t>(round)) % total;
    const std::size_t count = 1 + (thread * 5 + static_cast<std::size_t>(round)) % (total - first);
    const auto* start = pixels.data() + first * size;
    odin_images images = all;
    images.count = static_cast<std::int64_t>(count);
    Results results(count, classes);
    const char* const ways[] = {"host", "enqueue", "device", "default", "images"};
    const Bytes part(start, start + count * size);
    const odin_status status =
        score_once(scorer.get(), images, part, ways[(thread + static_cast<std::size_t>(round)) % 5],
                   {}, results, classes, false);
    if (status != ODIN_OK) throw odin::Error(status);
    for (std::size_t i = 0; i < count; ++i) {
      most = std::fmax(most, std::fabs(results.score[i] - wanted.score[first + i]));
      most = std::fmax(most, std::fabs(results.baseline[i] - wanted.baseline[first + i]));
      if (results.label[i] != wanted.label[first + i]) most = 1;
    }
  }
  return most;
}

int threads(char** arguments) {
  Log log;
  {
    odin::Options options;
    options.engine = ODIN_ENGINE_TENSORRT;
    options.log = [&](odin_log_level level, const std::string& text) {
      tell(&log, level, text.c_str());
    };
    const odin::Scorer scorer(arguments[0], options);
    odin_images images = batch(arguments + 2);
    const Bytes pixels = read(arguments[1]);
    images.data = pixels.data();
    const odin::Scores wanted = scorer.score(images, true);
    const auto number = static_cast<std::size_t>(std::atoi(arguments[5]));
    std::vector<double> worst(number, 1);
    std::vector<std::thread> all;
    for (std::size_t thread = 0; thread < number; ++thread) {
      all.emplace_back([&, thread] {
        worst[thread] =
            from_thread(scorer, images, pixels, wanted, thread, std::atoi(arguments[6]));
        const odin::Scorer another(arguments[0], options);  // opened and closed meanwhile
      });
    }
    for (std::thread& each : all) each.join();
    double most = 0;
    for (const double each : worst) most = std::fmax(most, each);
    std::printf("difference %.9g\n", most);
  }
  std::printf("faults %s\nalive %d\n", odin_double::faults().c_str(), odin_double::alive());
  return 0;
}

// One line of what a call returned.
void told(const char* name, odin_status status) {
  std::printf("%s|%d|%s\n", name, status, status == ODIN_OK ? "" : odin_scorer_last_error());
}

int wrong(char** arguments) {
  odin::Options options;
  options.engine = ODIN_ENGINE_TENSORRT;
  const odin::Scorer scorer(arguments[0], options);
  std::printf("%d %d %d\n", odin_scorer_has_engine(ODIN_ENGINE_AUTO),
              odin_scorer_has_engine(ODIN_ENGINE_OPENVINO),
              odin_scorer_has_engine(ODIN_ENGINE_TENSORRT));
  const OnDevice pixels(2 * 32 * 40 * 3), there(256);
  check(cudaSetDevice(1));
  const OnDevice elsewhere(2 * 32 * 40 * 3);
  check(cudaSetDevice(0));
  const Bytes here(2 * 32 * 40 * 3);
  float score[2];
  std::uint8_t is_ood[2];
  odin_images images{};
  images.size = sizeof images;
  images.data = here.data();
  images.count = 2;
  images.height = images.width = 32;
  images.channels = 3;
  odin_scores scores{};
  scores.size = sizeof scores;
  scores.score = score;
  odin_scorer* const handle = scorer.get();
  told("enqueue of the host's", odin_scorer_enqueue(handle, &images, &scores, nullptr));
  images.width = 41;
  told("width", odin_scorer_score(handle, &images, &scores));
  images.width = 32;
  images.memory = 2;
  told("memory", odin_scorer_score(handle, &images, &scores));
  images.memory = ODIN_DEVICE;
  told("host for device", odin_scorer_score(handle, &images, &scores));
  images.data = elsewhere.as();
  told("another device", odin_scorer_score(handle, &images, &scores));
  images.data = pixels.as();
  scores.is_ood = is_ood;
  scores.memory = ODIN_DEVICE;
  scores.score = there.as<float>();
  told("is_ood", odin_scorer_score(handle, &images, &scores));
  scores.is_ood = nullptr;
  scores.percentile = there.as<float>();
  told("percentile", odin_scorer_enqueue(handle, &images, &scores, nullptr));
  scores.percentile = nullptr;
  scores.reserved = 1;
  told("reserved", odin_scorer_score(handle, &images, &scores));
  scores.reserved = 0;
  scores.score = score;
  told("host score", odin_scorer_enqueue(handle, &images, &scores, nullptr));
  images.count = 0;
  images.data = nullptr;
  told("no images", odin_scorer_enqueue(handle, &images, &scores, nullptr));
  images.memory = ODIN_HOST;
  scores.memory = ODIN_HOST;
  scores.size = offsetof(odin_scores, percentile);
  scores.percentile = reinterpret_cast<float*>(1);  // which an older caller does not have
  scores.memory = 77;
  images.count = 2;
  images.data = here.data();
  told("older scores", odin_scorer_score(handle, &images, &scores));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count >= 9 && std::strcmp(arguments[1], "score") == 0) {
      return score(count - 2, arguments + 2);
    }
    if (count == 9 && std::strcmp(arguments[1], "threads") == 0) return threads(arguments + 2);
    if (count == 3 && std::strcmp(arguments[1], "wrong") == 0) return wrong(arguments + 2);
    return 2;
  } catch (const odin::Error& error) {
    std::printf("%d: %s\n", error.status(), error.what());
    return 1;
  }
}
