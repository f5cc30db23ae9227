#include "base/dtype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/multiprecision/cpp_int.hpp>
#include <cctype>
#include <set>
#include <string>

#include "base/error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

struct Row {
  DType dtype;
  std::uint64_t bits;
  const char* name;
  const char* safetensors;  // safetensors' Dtype; nullptr where it has none
  const char* pytorch;      // torch.NAME; nullptr where it has none
};

// In the order of the enum.
constexpr Row kRows[] = {
    {DType::boolean, 8, "bool", "BOOL", "bool"},
    {DType::f4, 4, "fp4", "F4", nullptr},
    {DType::nf4, 4, "nf4", nullptr, nullptr},
    {DType::f6_e2m3, 6, "fp6-e2m3", "F6_E2M3", nullptr},
    {DType::f6_e3m2, 6, "fp6-e3m2", "F6_E3M2", nullptr},
    {DType::u8, 8, "uint8", "U8", "uint8"},
    {DType::i8, 8, "int8", "I8", "int8"},
    {DType::f8_e5m2, 8, "fp8-e5m2", "F8_E5M2", "float8_e5m2"},
    {DType::f8_e4m3, 8, "fp8-e4m3", "F8_E4M3", "float8_e4m3fn"},
    {DType::f8_e8m0, 8, "fp8-e8m0", "F8_E8M0", "float8_e8m0fnu"},
    {DType::f8_e4m3fnuz, 8, "fp8-e4m3fnuz", "F8_E4M3FNUZ", "float8_e4m3fnuz"},
    {DType::f8_e5m2fnuz, 8, "fp8-e5m2fnuz", "F8_E5M2FNUZ", "float8_e5m2fnuz"},
    {DType::i16, 16, "int16", "I16", "int16"},
    {DType::u16, 16, "uint16", "U16", "uint16"},
    {DType::f16, 16, "fp16", "F16", "float16"},
    {DType::bf16, 16, "bf16", "BF16", "bfloat16"},
    {DType::i32, 32, "int32", "I32", "int32"},
    {DType::u32, 32, "uint32", "U32", "uint32"},
    {DType::f32, 32, "fp32", "F32", "float32"},
    {DType::c64, 64, "complex64", "C64", "complex64"},
    {DType::f64, 64, "fp64", "F64", "float64"},
    {DType::i64, 64, "int64", "I64", "int64"},
    {DType::u64, 64, "uint64", "U64", "uint64"},
};

template <typename Change>
std::string changed(std::string text, Change change) {
  std::transform(text.begin(), text.end(), text.begin(), [&](unsigned char c) { return static_cast<char>(change(c)); });
  return text;
}

TEST(DType, EachHasItsWidthAndItsNames) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < std::size(kRows); ++i) {
    const Row& row = kRows[i];
    SCOPED_TRACE(row.name);
    EXPECT_EQ(static_cast<std::size_t>(row.dtype), i);
    EXPECT_EQ(bits(row.dtype), row.bits);
    EXPECT_EQ(name(row.dtype), row.name);
    EXPECT_TRUE(names.insert(name(row.dtype)).second);
    for (const char* spelling : {row.name, row.safetensors, row.pytorch}) {
      if (spelling == nullptr) continue;
      EXPECT_EQ(parse_dtype(spelling), row.dtype) << spelling;
      EXPECT_EQ(parse_dtype(changed(spelling, [](int c) { return std::toupper(c); })), row.dtype) << spelling;
      EXPECT_EQ(parse_dtype(changed(spelling, [](int c) { return std::tolower(c); })), row.dtype) << spelling;
    }
  }
}

TEST(DType, NothingElseIsOne) {
  for (const char* text : {"", " ", "fp", "f", "32", "fp32 ", " fp32", "fp33", "int", "i", "bf", "f128", "fp320",
                           "torch", "nan", "fp32\n", "F32,F32"}) {
    EXPECT_EQ(parse_dtype(text), std::nullopt) << '"' << text << '"';
  }
  EXPECT_EQ(parse_dtype(std::string_view("fp32\0", 5)), std::nullopt);
  EXPECT_EQ(parse_dtype(std::string(100'000, 'f')), std::nullopt);
}

TEST(DType, GradientsAreFloatsOfSixteenBitsOrMore) {
  const std::set<DType> trainable{DType::f32, DType::f16, DType::bf16, DType::f64};
  for (const Row& row : kRows) EXPECT_EQ(is_trainable_dtype(row.dtype), trainable.contains(row.dtype)) << row.name;
}

TEST(DType, BytesAreRoundedUpToWholeOnes) {
  EXPECT_EQ(bytes_for(DType::f4, 0), 0_B);
  EXPECT_EQ(bytes_for(DType::f4, 1), 1_B);
  EXPECT_EQ(bytes_for(DType::f4, 2), 1_B);
  EXPECT_EQ(bytes_for(DType::nf4, 3), 2_B);
  EXPECT_EQ(bytes_for(DType::f6_e2m3, 1), 1_B);
  EXPECT_EQ(bytes_for(DType::f6_e2m3, 4), 3_B);
  EXPECT_EQ(bytes_for(DType::f6_e3m2, 5), 4_B);
  EXPECT_EQ(bytes_for(DType::boolean, 7), 7_B);
  EXPECT_EQ(bytes_for(DType::bf16, 7'000'000'000), 14_GB);
  EXPECT_EQ(bytes_for(DType::u8, UINT64_MAX), Bytes{UINT64_MAX});
  EXPECT_EQ(bytes_for(DType::f4, UINT64_MAX), Bytes{1ULL << 63});
}

TEST(DType, BytesAreExactOrAnOverflow) {
  using Wide = boost::multiprecision::uint128_t;
  test_support::check_property(1000, [] {
    const Row& row = kRows[*rc::gen::inRange<std::size_t>(0, std::size(kRows))];
    // Around the largest number of elements that can be counted in bytes, and everywhere else.
    const auto largest = static_cast<std::uint64_t>(std::min((Wide{1} << 64) * 8 / row.bits, Wide{UINT64_MAX}));
    const auto elements =
        *rc::gen::oneOf(rc::gen::arbitrary<std::uint64_t>(), rc::gen::inRange<std::uint64_t>(0, 100),
                        rc::gen::map(rc::gen::inRange<std::uint64_t>(0, 20), [=](auto n) { return largest - 10 + n; }));
    const Wide exact = (Wide{elements} * row.bits + 7) / 8;
    if (exact > UINT64_MAX) {
      RC_ASSERT_THROWS_AS(bytes_for(row.dtype, elements), ArithmeticOverflow);
    } else {
      RC_ASSERT(Wide{bytes_for(row.dtype, elements).count()} == exact);
    }
  });
}

}  // namespace
}  // namespace shardplan
