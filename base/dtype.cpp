#include "base/dtype.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

namespace shardplan {
namespace {

struct Row {
  DType dtype;
  std::uint64_t bits;
  std::string_view name;
  std::string_view safetensors;
  std::string_view pytorch;
};

// In the order of the enumeration: a test compares each row's index with its type.
constexpr std::array<Row, 23> kRows{{
    {DType::boolean, 8, "bool", "bool", "bool"},
    {DType::f4, 4, "fp4", "f4", "float4_e2m1fn_x2"},
    {DType::nf4, 4, "nf4", "nf4", "nf4"},
    {DType::f6_e2m3, 6, "fp6-e2m3", "f6_e2m3", "float6_e2m3fn"},
    {DType::f6_e3m2, 6, "fp6-e3m2", "f6_e3m2", "float6_e3m2fn"},
    {DType::u8, 8, "uint8", "u8", "uint8"},
    {DType::i8, 8, "int8", "i8", "int8"},
    {DType::f8_e5m2, 8, "fp8-e5m2", "f8_e5m2", "float8_e5m2"},
    {DType::f8_e4m3, 8, "fp8-e4m3", "f8_e4m3", "float8_e4m3fn"},
    {DType::f8_e8m0, 8, "fp8-e8m0", "f8_e8m0", "float8_e8m0fnu"},
    {DType::f8_e4m3fnuz, 8, "fp8-e4m3fnuz", "f8_e4m3fnuz", "float8_e4m3fnuz"},
    {DType::f8_e5m2fnuz, 8, "fp8-e5m2fnuz", "f8_e5m2fnuz", "float8_e5m2fnuz"},
    {DType::i16, 16, "int16", "i16", "int16"},
    {DType::u16, 16, "uint16", "u16", "uint16"},
    {DType::f16, 16, "fp16", "f16", "float16"},
    {DType::bf16, 16, "bf16", "bf16", "bfloat16"},
    {DType::i32, 32, "int32", "i32", "int32"},
    {DType::u32, 32, "uint32", "u32", "uint32"},
    {DType::f32, 32, "fp32", "f32", "float32"},
    {DType::c64, 64, "complex64", "c64", "complex64"},
    {DType::f64, 64, "fp64", "f64", "float64"},
    {DType::i64, 64, "int64", "i64", "int64"},
    {DType::u64, 64, "uint64", "u64", "uint64"},
}};

const Row& row(DType dtype) {
  return kRows[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::uint64_t bits(DType dtype) {
  return row(dtype).bits;
}

std::string_view name(DType dtype) {
  return row(dtype).name;
}

std::optional<DType> parse_dtype(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const Row& row : kRows) {
    if (lower == row.name || lower == row.safetensors || lower == row.pytorch) return row.dtype;
  }
  return std::nullopt;
}

bool is_trainable_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

Bytes bytes_for(DType dtype, std::uint64_t elements) {
  const std::uint64_t width = bits(dtype);
  // Eight elements are `width` bytes; the rest is rounded up to a whole one.
  const Bytes eights{checked_multiply(elements / 8, width)};
  return eights + Bytes{divide_up(elements % 8 * width, 8)};
}

}  // namespace shardplan
