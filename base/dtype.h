// Element types, by their width in bits, so that 4-bit types take half a byte.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/bytes.h"

namespace shardplan {

// The names are safetensors' (formats: "F32", "BF16", ...), plus NF4 (QLoRA's 4-bit NormalFloat, stored as F4 is).
enum class DType : std::uint8_t {
  boolean,
  f4,
  nf4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

std::uint64_t bits(DType dtype);

// "fp32", "bf16", "int8", "nf4", ...: the spelling in flags, tables and JSON.
std::string_view name(DType dtype);

// Reads our spelling, safetensors' and PyTorch's ("fp32", "F32", "float32"), in any case; nothing if it is none.
std::optional<DType> parse_dtype(std::string_view text);

// True for the types that gradients and optimizer states can have: fp32, fp16, bf16 and fp64.
bool is_trainable_dtype(DType dtype);

// elements * bits / 8, rounded up to a whole byte. Throws ArithmeticOverflow.
Bytes bytes_for(DType dtype, std::uint64_t elements);

}  // namespace shardplan
