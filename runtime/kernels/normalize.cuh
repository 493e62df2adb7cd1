// odin_normalize_{f32,f16,bf16}: uint8 images, channels last, to normalised images, channels first.
//
//   images[n, c, p] = pixels[n, p, c] * scale[c] - offset[c]
//
// with scale = 1 / (255 std) and offset = mean / std: the input transform of ODIN's released code
// (ToTensor, then Normalize) in one multiplication and subtraction, rounded once to float32 and
// once to T.
//
// One thread takes one group of pixels: where the planes allow it, as many as fill a 16-byte store
// in each channel; else one pixel.
#pragma once

#include "elements.cuh"

namespace odin {

constexpr int kNormalizeBlock = 256;

template <typename T>
struct NormalizeArguments {
  const uint8_t* pixels;  // (count, plane, channels)
  T* images;              // (count, channels, plane)
  const float* scale;     // (channels)
  const float* offset;    // (channels)
  int64_t count;
  int64_t plane;
  int32_t channels;
};

ODIN_BOTH inline float normalized(uint32_t pixel, float scale, float offset) {
  return fmaf(static_cast<float>(pixel), scale, -offset);
}

// N pixels of C channels (0: as many as the arguments say) from the flat index `first` on, all of
// one image. Channels known in advance have their bytes loaded four at a time.
template <int N, int C, typename T>
ODIN_BOTH inline void normalize_pixels(const NormalizeArguments<T>& a, int64_t first) {
  const int32_t channels = C > 0 ? C : a.channels;
  const int64_t image = first / a.plane;
  T* target = a.images + first + image * (channels - 1) * a.plane;
  const uint8_t* source = a.pixels + first * channels;
  [[maybe_unused]] uint32_t words[C > 0 ? N * C / 4 : 1];
  if constexpr (C > 0) {
    ODIN_UNROLL for (int i = 0; i < N * C / 4; ++i) words[i] = read_word(source + 4 * i);
  }
  ODIN_UNROLL_BY(C > 0 ? C : 1) for (int32_t c = 0; c < channels; ++c) {
    const float scale = read(a.scale + c);
    const float offset = read(a.offset + c);
    float values[N];
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      uint32_t pixel;
      if constexpr (C > 0) {
        const int byte = j * C + c;
        pixel = words[byte / 4] >> 8 * (byte % 4) & 0xffu;
      } else {
        pixel = read(source + static_cast<int64_t>(j) * channels + c);
      }
      values[j] = normalized(pixel, scale, offset);
    }
    store<N>(target + c * a.plane, values);
  }
}

template <int N, int C, typename T>
ODIN_BOTH inline void normalize_groups(const NormalizeArguments<T>& a, Share share) {
  const int64_t groups = a.count * a.plane / N;
  for (int64_t i = share.first; i < groups; i += share.step) normalize_pixels<N, C>(a, i * N);
}

template <typename T>
ODIN_BOTH inline void normalize(const NormalizeArguments<T>& a, Share share) {
  constexpr int N = kGroup<T>;
  const bool groups = is_aligned(a.images) && a.plane % N == 0;
  const bool words = groups && is_aligned(a.pixels, 4);
  if (words && a.channels == 3) {
    normalize_groups<N, 3>(a, share);
  } else if (words && a.channels == 1) {
    normalize_groups<N, 1>(a, share);
  } else if (groups) {
    normalize_groups<N, 0>(a, share);
  } else {
    normalize_groups<1, 0>(a, share);
  }
}

#ifdef __CUDACC__
template <typename T>
__device__ inline void normalize_kernel(const NormalizeArguments<T>& a) {
  normalize(a, share_of_thread());
}
#endif

// The host twin.
template <typename T>
inline void run_on_host(const NormalizeArguments<T>& a) {
  normalize(a, kWhole);
}

}  // namespace odin
