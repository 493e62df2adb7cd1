/* A C program that scores images, and one that calls the library wrongly.
 *
 *   program score BUNDLE FILE u8|f32 COUNT HEIGHT WIDTH
 *   program errors BUNDLE MISSING
 *   program overrun BUNDLE         reads past the end of its own images
 *
 * FILE holds the images as odin.h wants them. Numbers are printed so that no digit is lost. */
#include <odin/odin.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(odin_status status) {
  printf("%d|%s|%s\n", status, odin_scorer_status_text(status), odin_scorer_last_error());
  return 1;
}

static void* read_images(const char* name, size_t bytes) {
  FILE* file = fopen(name, "rb");
  void* data = malloc(bytes > 0 ? bytes : 1);
  if (file == NULL || data == NULL || fread(data, 1, bytes, file) != bytes) {
    printf("cannot read %s\n", name);
    exit(1);
  }
  fclose(file);
  return data;
}

static void print_info(const odin_scorer_info* info) {
  printf("%s %s %s %s %s\n", info->model, info->method, info->input_type, info->engine,
         info->precision);
  printf("%lld %d %d %d %d %d\n", (long long)info->classes, info->channels, info->least_height,
         info->most_height, info->least_width, info->most_width);
  printf("%.17g %.17g %d %d %.17g\n", info->temperature, info->magnitude, info->tunable,
         info->calibrated, info->threshold);
  for (int32_t channel = 0; channel < info->channels; ++channel) {
    printf("%.17g %.17g ", info->mean[channel], info->std[channel]);
  }
  printf("\n");
}

static int score(char** arguments) {
  odin_scorer* scorer = NULL;
  odin_status status = odin_scorer_open(arguments[0], NULL, &scorer);
  if (status != ODIN_OK) return failed(status);
  odin_scorer_info info = {.size = sizeof info};
  status = odin_scorer_get_info(scorer, &info);
  if (status != ODIN_OK) return failed(status);
  print_info(&info);
  odin_images images = {.size = sizeof images, .channels = info.channels};
  images.type = strcmp(arguments[2], "u8") == 0 ? ODIN_U8_NHWC : ODIN_F32_NCHW;
  images.count = atoll(arguments[3]);
  images.height = atoll(arguments[4]);
  images.width = atoll(arguments[5]);
  const size_t values = (size_t)(images.count * images.height * images.width * images.channels);
  void* data = read_images(arguments[1], values * (images.type == ODIN_U8_NHWC ? 1 : 4));
  images.data = data;

  const size_t count = (size_t)images.count, classes = (size_t)info.classes;
  float* score = calloc(count, sizeof *score);
  float* baseline = calloc(count, sizeof *baseline);
  int64_t* label = calloc(count, sizeof *label);
  uint8_t* is_ood = info.calibrated ? calloc(count, 1) : NULL;
  float* logits = calloc(count * classes, sizeof *logits);
  float* percentile = info.calibrated ? calloc(count, sizeof *percentile) : NULL;
  const odin_scores scores = {sizeof scores, score,  baseline,   label,
                              is_ood,        logits, percentile, ODIN_HOST, 0};
  status = odin_scorer_score(scorer, &images, &scores);
  odin_scorer_close(scorer);
  if (status != ODIN_OK) return failed(status);
  for (size_t i = 0; i < count; ++i) {
    printf("%.9g %.9g %lld %d %.9g", score[i], baseline[i], (long long)label[i],
           is_ood == NULL ? -1 : is_ood[i], percentile == NULL ? -1 : percentile[i]);
    for (size_t c = 0; c < classes; ++c) printf(" %.9g", logits[i * classes + c]);
    printf("\n");
  }
  free(data), free(score), free(baseline), free(label), free(is_ood), free(logits);
  free(percentile);
  return 0;
}

/* One line of what a call returned. */
static void tell(const char* name, odin_status status) {
  printf("%s|%d|%s\n", name, status, status == ODIN_OK ? "" : odin_scorer_last_error());
}

static void* no_memory(void* context, size_t bytes, size_t alignment) {
  (void)context, (void)bytes, (void)alignment;
  return NULL;
}

static void free_nothing(void* context, void* memory, size_t bytes) {
  (void)context, (void)memory, (void)bytes;
}

static void wrong_options(const char* bundle, const char* missing) {
  odin_scorer* scorer = (odin_scorer*)1;
  odin_scorer_options options = {.size = sizeof options};
  tell("missing", odin_scorer_open(missing, &options, &scorer));
  if (scorer != NULL) printf("the handle is not NULL\n");
  tell("null bundle", odin_scorer_open(NULL, NULL, &scorer));
  tell("null handle", odin_scorer_open(bundle, NULL, NULL));
  options.size = 4;
  tell("small options", odin_scorer_open(bundle, &options, &scorer));
  struct {
    odin_scorer_options options;
    int64_t more;
  } newer = {{.size = sizeof newer}, 1};
  tell("newer options", odin_scorer_open(bundle, &newer.options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .engine = ODIN_ENGINE_TENSORRT};
  tell("tensorrt", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .engine = 9};
  tell("engine", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .threads = -1};
  tell("threads", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .threads = 1, .streams = 2};
  tell("streams", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .precision = ODIN_PRECISION_FP16};
  tell("precision", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .cache = missing};
  tell("cache", odin_scorer_open(bundle, &options, &scorer));
  options = (odin_scorer_options){.size = sizeof options, .allocator.allocate = no_memory};
  tell("half an allocator", odin_scorer_open(bundle, &options, &scorer));
  options.allocator.deallocate = free_nothing;
  tell("no memory", odin_scorer_open(bundle, &options, &scorer));
  newer.more = 0;
  tell("newer options of zero", odin_scorer_open(bundle, &newer.options, &scorer));
  odin_scorer_close(scorer);
}

static void wrong_images(odin_scorer* scorer) {
  static float values[2 * 3 * 33 * 32 + 1];
  float score[2];
  uint8_t is_ood[2];
  const odin_images right = {sizeof right, values, 2, 32, 32, 3, ODIN_F32_NCHW, 0};
  const odin_scores scores = {.size = sizeof scores, .score = score};
  odin_images images = right;
  tell("null scorer", odin_scorer_score(NULL, &images, &scores));
  tell("null images", odin_scorer_score(scorer, NULL, &scores));
  tell("null scores", odin_scorer_score(scorer, &images, NULL));
  images.data = NULL;
  tell("null data", odin_scorer_score(scorer, &images, &scores));
  images.data = (const char*)values + 1;
  tell("misaligned data", odin_scorer_score(scorer, &images, &scores));
  images = right, images.type = 7;
  tell("type", odin_scorer_score(scorer, &images, &scores));
  images = right, images.count = -1;
  tell("count", odin_scorer_score(scorer, &images, &scores));
  images = right, images.count = INT64_MAX / 2;
  tell("overflow", odin_scorer_score(scorer, &images, &scores));
  images = right, images.height = 31;
  tell("height", odin_scorer_score(scorer, &images, &scores));
  images = right, images.width = 64;
  tell("width", odin_scorer_score(scorer, &images, &scores));
  images = right, images.channels = 4;
  tell("channels", odin_scorer_score(scorer, &images, &scores));
  images = right, images.size = 0;
  tell("size", odin_scorer_score(scorer, &images, &scores));
  images = right, images.memory = 2;
  tell("memory", odin_scorer_score(scorer, &images, &scores));
  images = right, images.memory = ODIN_DEVICE;
  tell("device", odin_scorer_score(scorer, &images, &scores));
  images = right;
  tell("enqueue", odin_scorer_enqueue(scorer, &images, &scores, NULL));
  odin_scores others = scores;
  others.reserved = 1;
  tell("reserved", odin_scorer_score(scorer, &images, &others));
  others = scores;
  others.score = (float*)((char*)score + 1);
  tell("misaligned score", odin_scorer_score(scorer, &images, &others));
  others = scores, others.is_ood = is_ood;
  tell("is_ood", odin_scorer_score(scorer, &images, &others));
  others = scores, others.percentile = score;
  tell("percentile", odin_scorer_score(scorer, &images, &others));
  images.count = 0, images.data = NULL;
  tell("no images", odin_scorer_score(scorer, &images, &scores));
}

static int errors(const char* bundle, const char* missing) {
  if (strcmp(odin_scorer_last_error(), "") != 0) return failed(ODIN_OK);
  wrong_options(bundle, missing);
  odin_scorer* scorer = NULL;
  const odin_status status = odin_scorer_open(bundle, NULL, &scorer);
  if (status != ODIN_OK) return failed(status);
  wrong_images(scorer);
  odin_scorer_info info = {.size = 8};
  tell("info", odin_scorer_get_info(scorer, &info));
  tell("null info", odin_scorer_get_info(scorer, NULL));
  odin_scorer_close(scorer);
  odin_scorer_close(NULL);
  return 0;
}

/* For the sanitizer to find. */
static int overrun(const char* bundle) {
  odin_scorer* scorer = NULL;
  const odin_status status = odin_scorer_open(bundle, NULL, &scorer);
  if (status != ODIN_OK) return failed(status);
  const size_t bytes = 32 * 32 * 3;
  const odin_images images = {sizeof images, calloc(bytes - 1, 1), 1, 32, 32, 3, ODIN_U8_NHWC, 0};
  float score = 0;
  const odin_scores scores = {.size = sizeof scores, .score = &score};
  tell("overrun", odin_scorer_score(scorer, &images, &scores));
  free((void*)images.data);
  odin_scorer_close(scorer);
  return 0;
}

int main(int count, char** arguments) {
  if (count == 8 && strcmp(arguments[1], "score") == 0) return score(arguments + 2);
  if (count == 4 && strcmp(arguments[1], "errors") == 0) return errors(arguments[2], arguments[3]);
  if (count == 3 && strcmp(arguments[1], "overrun") == 0) return overrun(arguments[2]);
  printf("wrong arguments\n");
  return 2;
}
