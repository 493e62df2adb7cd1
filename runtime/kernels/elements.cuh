// What the four kernels and their host twins share: element types, conversions, 16-byte groups.
//
// Everything marked ODIN_BOTH is compiled twice: by nvcc for the device, where it uses CUDA's own
// conversions and read-only loads, and by a C++17 compiler for the host twins, where it needs
// nothing of CUDA (but GCC's or Clang's builtins and a little-endian machine). Both round to
// nearest even, so both give the same bits.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define ODIN_BOTH __host__ __device__
#define ODIN_PRAGMA(text) _Pragma(#text)
#define ODIN_UNROLL ODIN_PRAGMA(unroll)
#define ODIN_UNROLL_BY(count) ODIN_PRAGMA(unroll(count))
#else
#define ODIN_BOTH
#define ODIN_UNROLL
#define ODIN_UNROLL_BY(count)
#endif

namespace odin {

// IEEE 754 binary16 and bfloat16, as they lie in memory.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

// Elements of type T in one 16-byte load or store.
template <typename T>
constexpr int kGroup = 16 / static_cast<int>(sizeof(T));

struct Words {
  uint32_t word[4];
};

// ---- bits ----------------------------------------------------------------------------------

ODIN_BOTH inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

ODIN_BOTH inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

ODIN_BOTH inline bool is_nan(float value) { return value != value; }

// ---- conversions on the host -----------------------------------------------------------------

// Subnormal halves are multiples of 2^-24; all halves are exact in float32.
inline float widen_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x0400u) {  // normal: exponent bias 15 -> 127
    return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
  }
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

// Nearest even. From 65520 on, half-way between the largest half and 2^16, comes infinity.
inline uint16_t narrow_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;  // NaN, as CUDA writes it
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // at least 2^-14: a normal half
    const uint32_t odd = magnitude >> 13 & 1u;
    half = (magnitude - (112u << 23) + 0x0fffu + odd) >> 13;
  } else {
    // The sum's unit in the last place is 2^-24, so the addition rounds as wanted.
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  }
  return static_cast<uint16_t>((magnitude > 0x7f800000u ? 0u : sign) | half);
}

inline uint16_t narrow_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  if (is_nan(value)) return 0x7fffu;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// ---- conversions on both ---------------------------------------------------------------------

ODIN_BOTH inline float to_float(float value) { return value; }

ODIN_BOTH inline float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  return widen_half(value.bits);
#endif
}

ODIN_BOTH inline float to_float(Bfloat16 value) {
  return float_of_bits(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
ODIN_BOTH inline T from_float(float value);

template <>
ODIN_BOTH inline float from_float<float>(float value) {
  return value;
}

template <>
ODIN_BOTH inline Half from_float<Half>(float value) {
#ifdef __CUDA_ARCH__
  return Half{__half_as_ushort(__float2half_rn(value))};
#else
  return Half{narrow_half(value)};
#endif
}

template <>
ODIN_BOTH inline Bfloat16 from_float<Bfloat16>(float value) {
#ifdef __CUDA_ARCH__
  return Bfloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  return Bfloat16{narrow_bfloat16(value)};
#endif
}

// ---- loads of one element --------------------------------------------------------------------

// Inputs are never written while a kernel runs, so they may go through the read-only cache.
template <typename U>
ODIN_BOTH inline U read(const U* source) {
#ifdef __CUDA_ARCH__
  return __ldg(source);
#else
  return *source;
#endif
}

ODIN_BOTH inline float read_float(const float* source) { return read(source); }

template <typename Narrow>
ODIN_BOTH inline float read_float(const Narrow* source) {
  return to_float(Narrow{read(&source->bits)});
}

// Four bytes from an address that is a multiple of 4.
ODIN_BOTH inline uint32_t read_word(const uint8_t* source) {
#ifdef __CUDA_ARCH__
  return __ldg(reinterpret_cast<const uint32_t*>(source));
#else
  uint32_t word;
  memcpy(&word, source, sizeof word);
  return word;
#endif
}

// ---- groups of 16 bytes ----------------------------------------------------------------------

ODIN_BOTH inline bool is_aligned(const void* pointer, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

ODIN_BOTH inline Words read_words(const void* source) {
#ifdef __CUDA_ARCH__
  const uint4 words = __ldg(static_cast<const uint4*>(source));
  return Words{{words.x, words.y, words.z, words.w}};
#else
  Words words;
  memcpy(&words, __builtin_assume_aligned(source, 16), sizeof words);
  return words;
#endif
}

ODIN_BOTH inline void write_words(void* target, const Words& words) {
#ifdef __CUDA_ARCH__
  // An instruction, not an assignment, which the compiler may split into words and, in an unrolled
  // loop, does.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
               "r"(words.word[0]), "r"(words.word[1]), "r"(words.word[2]), "r"(words.word[3])
               : "memory");
#else
  memcpy(__builtin_assume_aligned(target, 16), &words, sizeof words);
#endif
}

ODIN_BOTH inline void unpack(const float*, const Words& words, float (&values)[4]) {
  ODIN_UNROLL for (int j = 0; j < 4; ++j) values[j] = float_of_bits(words.word[j]);
}

template <typename Narrow>
ODIN_BOTH inline void unpack(const Narrow*, const Words& words, float (&values)[8]) {
  ODIN_UNROLL for (int j = 0; j < 8; ++j) {
    const uint32_t bits = words.word[j / 2] >> 16 * (j % 2) & 0xffffu;
    values[j] = to_float(Narrow{static_cast<uint16_t>(bits)});
  }
}

ODIN_BOTH inline Words pack(const float*, const float (&values)[4]) {
  Words words;
  ODIN_UNROLL for (int j = 0; j < 4; ++j) words.word[j] = bits_of_float(values[j]);
  return words;
}

template <typename Narrow>
ODIN_BOTH inline Words pack(const Narrow*, const float (&values)[8]) {
  Words words;
  ODIN_UNROLL for (int j = 0; j < 4; ++j) {
    const uint32_t low = from_float<Narrow>(values[2 * j]).bits;
    const uint32_t high = from_float<Narrow>(values[2 * j + 1]).bits;
    words.word[j] = low | high << 16;
  }
  return words;
}

// Load or store N elements: one, or a whole aligned group.
template <int N, typename T>
ODIN_BOTH inline void load(const T* source, float (&values)[N]) {
  if constexpr (N == 1) {
    values[0] = read_float(source);
  } else {
    unpack(source, read_words(source), values);
  }
}

template <int N, typename T>
ODIN_BOTH inline void store(T* target, const float (&values)[N]) {
  if constexpr (N == 1) {
    *target = from_float<T>(values[0]);
  } else {
    write_words(target, pack(target, values));
  }
}

// Load the group of a row that begins at `first` (< size); `padding` stands for what lies past the
// end. The group is always the same elements, whether or not the address allows one wide load:
// sums over a row do not depend on where the row lies.
template <typename T>
ODIN_BOTH inline void load_group(const T* row, int64_t first, int64_t size, float padding,
                                 float (&values)[kGroup<T>]) {
  if (is_aligned(row) && size - first >= kGroup<T>) {
    load(row + first, values);
  } else {
    ODIN_UNROLL for (int j = 0; j < kGroup<T>; ++j) {
      values[j] = size - first > j ? read_float(row + first + j) : padding;
    }
  }
}

template <typename T>
ODIN_BOTH inline void store_group(T* row, int64_t first, int64_t size,
                                  const float (&values)[kGroup<T>]) {
  if (is_aligned(row) && size - first >= kGroup<T>) {
    store(row + first, values);
  } else {
    ODIN_UNROLL for (int j = 0; j < kGroup<T>; ++j) {
      if (size - first > j) row[first + j] = from_float<T>(values[j]);
    }
  }
}

// ---- where an element of (images, channels, plane) lies --------------------------------------

// Position in the plane and channel of the element with a flat index; `next` goes one further.
struct Place {
  int64_t position;
  int32_t channel;
};

ODIN_BOTH inline Place place_of(int64_t index, int64_t plane, int32_t channels) {
  const int64_t planes = index / plane;
  return Place{index - planes * plane, static_cast<int32_t>(planes % channels)};
}

ODIN_BOTH inline Place next(Place place, int64_t plane, int32_t channels) {
  if (++place.position < plane) return place;
  return Place{0, place.channel + 1 < channels ? place.channel + 1 : 0};
}

// This thread's number in the grid and the number of threads: the start and step of a grid-stride
// loop. A host twin is the same loop from 0 in steps of 1.
struct Share {
  int64_t first;
  int64_t step;
};

#ifdef __CUDACC__
__device__ inline Share share_of_thread() {
  const int64_t block = blockDim.x;
  return Share{blockIdx.x * block + threadIdx.x, gridDim.x * block};
}
#endif

constexpr Share kWhole{0, 1};

}  // namespace odin
