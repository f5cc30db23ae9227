#include "base/bytes.h"

#include <gtest/gtest.h>

#include <boost/multiprecision/cpp_int.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using Wide = boost::multiprecision::uint128_t;

constexpr std::uint64_t kMax = UINT64_MAX;
constexpr Bytes kMaxBytes{kMax};

// A result, or 2^64 for an overflow: what exact arithmetic says, cut off.
template <typename Compute>
Wide result_of(Compute compute) {
  try {
    return Wide{compute()};
  } catch (const ArithmeticOverflow&) {
    return Wide{kMax} + 1;
  }
}
Wide cut_off(const Wide& exact) {
  return exact > kMax ? Wide{kMax} + 1 : exact;
}

// Numbers at which 64-bit arithmetic goes wrong, and ordinary ones.
rc::Gen<std::uint64_t> any_number() {
  return rc::gen::oneOf(rc::gen::arbitrary<std::uint64_t>(), rc::gen::inRange<std::uint64_t>(0, 100),
                        rc::gen::map(rc::gen::inRange<std::uint64_t>(0, 100), [](auto n) { return kMax - n; }),
                        rc::gen::map(rc::gen::inRange(0, 64), [](int bit) { return std::uint64_t{1} << bit; }),
                        rc::gen::map(rc::gen::inRange(0, 64), [](int bit) { return (std::uint64_t{1} << bit) - 1; }));
}

TEST(Checked, EveryOperationIsExactOrAnOverflow) {
  test_support::check_property(2000, [] {
    const auto a = *any_number();
    const auto b = *any_number();
    RC_ASSERT(result_of([&] { return checked_add(a, b); }) == cut_off(Wide{a} + b));
    RC_ASSERT(result_of([&] { return checked_multiply(a, b); }) == cut_off(Wide{a} * b));
    RC_ASSERT(result_of([&] { return checked_subtract(a, b); }) == (a >= b ? Wide{a - b} : Wide{kMax} + 1));
    RC_ASSERT(result_of([&] { return (Bytes{a} + Bytes{b}).count(); }) == cut_off(Wide{a} + b));
    RC_ASSERT(result_of([&] { return (Bytes{a} * b).count(); }) == cut_off(Wide{a} * b));
    RC_ASSERT(result_of([&] { return (a * Bytes{b}).count(); }) == cut_off(Wide{a} * b));
    RC_ASSERT(result_of([&] { return (Bytes{a} - Bytes{b}).count(); }) == (a >= b ? Wide{a - b} : Wide{kMax} + 1));
    if (b == 0) return;
    const Wide divided = (Wide{a} + b - 1) / b;
    RC_ASSERT(Wide{divide_up(a, b)} == divided);
    RC_ASSERT(result_of([&] { return round_up(a, b); }) == cut_off(divided * b));
    RC_ASSERT(result_of([&] { return round_up(Bytes{a}, Bytes{b}).count(); }) == cut_off(divided * b));
  });
}

TEST(Checked, AFailedAssignmentChangesNothing) {
  Bytes bytes = 5_B;
  EXPECT_THROW(bytes += kMaxBytes, ArithmeticOverflow);
  EXPECT_EQ(bytes, 5_B);
  EXPECT_THROW(bytes -= 6_B, ArithmeticOverflow);
  EXPECT_EQ(bytes, 5_B);
  bytes += 10_B;
  bytes -= 3_B;
  EXPECT_EQ(bytes, 12_B);
}

TEST(Checked, OverflowSaysWhatWasComputed) {
  try {
    checked_multiply(1ULL << 40, 1ULL << 41);
    FAIL();
  } catch (const ArithmeticOverflow& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("1099511627776"), std::string::npos) << text;
    EXPECT_NE(text.find("2199023255552"), std::string::npos) << text;
    EXPECT_NE(text.find('*'), std::string::npos) << text;
  }
}

static_assert(Bytes{}.count() == 0);
static_assert(!std::is_convertible_v<std::uint64_t, Bytes> && !std::is_convertible_v<Bytes, std::uint64_t>);
static_assert(sizeof(Bytes) == 8 && std::is_trivially_copyable_v<Bytes>);
static_assert(1_B == Bytes{1} && 1_kB == 1000_B && 1_MB == 1000_kB && 1_GB == 1000_MB && 1_TB == 1000_GB);
static_assert(1_KiB == 1024_B && 1_MiB == 1024_KiB && 1_GiB == 1024_MiB && 1_TiB == 1024_GiB);
static_assert(1_GB < 1_GiB && 80_GiB > 80_GB && 2_GB >= 2_GB);
static_assert(round_up(0_B, 64_B) == 0_B && round_up(64_B, 64_B) == 64_B && round_up(65_B, 64_B) == 128_B);

TEST(BytesLiterals, OverflowToo) {
  EXPECT_EQ(16'777'215_TiB, Bytes{16'777'215ULL << 40});
  EXPECT_THROW(16'777'216_TiB, ArithmeticOverflow);
  EXPECT_THROW(18'446'745_TB, ArithmeticOverflow);
  EXPECT_THROW(18'014'398'509'481'984_KiB, ArithmeticOverflow);
}

TEST(SignedDifference, SaturatesAtTheEnds) {
  EXPECT_EQ(signed_difference(3_B, 5_B), -2);
  EXPECT_EQ(signed_difference(5_B, 3_B), 2);
  EXPECT_EQ(signed_difference(5_B, 5_B), 0);
  constexpr Bytes half{1ULL << 63};
  EXPECT_EQ(signed_difference(half - 1_B, 0_B), INT64_MAX);
  EXPECT_EQ(signed_difference(half, 0_B), INT64_MAX);
  EXPECT_EQ(signed_difference(kMaxBytes, 0_B), INT64_MAX);
  EXPECT_EQ(signed_difference(0_B, half - 1_B), -INT64_MAX);
  EXPECT_EQ(signed_difference(0_B, half), INT64_MIN);
  EXPECT_EQ(signed_difference(0_B, kMaxBytes), INT64_MIN);
}

struct Printed {
  std::uint64_t bytes;
  const char* gb;
  const char* gib;
};

TEST(BytesPrinting, SaysWhichUnit) {
  const Printed cases[] = {
      {0, "0 B", "0 B"},
      {14'000'000'000, "14.00 GB", "13.04 GiB"},
      {112'000'000'000, "112.00 GB", "104.31 GiB"},
      {80ULL << 30, "85.90 GB", "80.00 GiB"},
      {1'234'567'890'123, "1234.57 GB", "1149.78 GiB"},
  };
  for (const Printed& test : cases) {
    EXPECT_EQ(in_gb(Bytes{test.bytes}), test.gb);
    EXPECT_EQ(in_gib(Bytes{test.bytes}), test.gib);
  }
}

// What a printed size says: the value, one half of its last place, its unit and how many places are significant.
struct Reading {
  long double value = 0;
  long double half_place = 0;
  std::string unit;
  std::size_t significant = 0;
};

Reading read_printed(const std::string& text) {
  Reading reading;
  const std::size_t space = text.find(' ');
  const std::string number = text.substr(0, space);
  reading.unit = text.substr(space + 1);
  long double scale = 1;
  for (const auto& [unit, bytes] : {std::pair<const char*, Bytes>{"kB", 1_kB},
                                    {"MB", 1_MB},
                                    {"GB", 1_GB},
                                    {"KiB", 1_KiB},
                                    {"MiB", 1_MiB},
                                    {"GiB", 1_GiB}}) {
    if (reading.unit == unit) scale = static_cast<long double>(bytes.count());
  }
  const std::size_t point = number.find('.');
  const auto places = point == std::string::npos ? 0 : number.size() - point - 1;
  reading.value = std::stold(number) * scale;
  reading.half_place = reading.unit == "B" ? 0 : std::pow(10.0L, -static_cast<long double>(places)) / 2 * scale;
  const std::size_t first = number.find_first_not_of("0.");
  if (first == std::string::npos) return reading;
  reading.significant = number.size() - first - (point != std::string::npos && point > first ? 1 : 0);
  return reading;
}

TEST(BytesPrinting, IsRightToTheLastPlaceWithThreePlacesOrMore) {
  test_support::check_property(5000, [] {
    const std::uint64_t count = *any_number() >> *rc::gen::inRange(0, 64);
    for (const bool binary : {false, true}) {
      const std::string text = binary ? in_gib(Bytes{count}) : in_gb(Bytes{count});
      const Reading reading = read_printed(text);
      const std::uint64_t largest = (binary ? 1_GiB : 1_GB).count();
      RC_LOG() << count << " is printed as " << text;
      RC_ASSERT((reading.unit == (binary ? "GiB" : "GB")) == (Wide{count} * 10 >= largest));
      RC_ASSERT((reading.unit == "B" || reading.significant >= 3U));
      RC_ASSERT(std::fabs(reading.value - static_cast<long double>(count)) <= reading.half_place * 1.0001L);
    }
  });
}

TEST(ParseBytes, ReadsWhatItSaysItReads) {
  EXPECT_EQ(parse_bytes("80GiB"), 80_GiB);
  EXPECT_EQ(parse_bytes("80 GiB"), 80_GiB);
  EXPECT_EQ(parse_bytes("80 GB"), 80_GB);
  EXPECT_EQ(parse_bytes("1.5TiB"), 1536_GiB);
  EXPECT_EQ(parse_bytes("1.5GiB"), 1536_MiB);
  EXPECT_EQ(parse_bytes("0.1GB"), 100_MB);
  EXPECT_EQ(parse_bytes("512MB"), 512_MB);
  EXPECT_EQ(parse_bytes("2kB"), 2000_B);
  EXPECT_EQ(parse_bytes("2KiB"), 2048_B);
  EXPECT_EQ(parse_bytes("7TB"), 7_TB);
  EXPECT_EQ(parse_bytes("1024"), 1024_B);
  EXPECT_EQ(parse_bytes("1024B"), 1024_B);
  EXPECT_EQ(parse_bytes("0"), 0_B);
  EXPECT_EQ(parse_bytes("18446744073709551615"), kMaxBytes);
  EXPECT_EQ(parse_bytes("9007199254740993"), Bytes{9007199254740993});  // no double has it
  EXPECT_EQ(parse_bytes("16777215TiB"), 16'777'215_TiB);
}

TEST(ParseBytes, RefusesEverythingElseAndSaysIt) {
  const char* const bad[] = {"",
                             " ",
                             "80Gi",
                             "80G",
                             "80K",
                             "80M",
                             "80T",
                             "-1GB",
                             "+1GB",
                             "-1",
                             "GB",
                             "GiB",
                             " 80GiB",
                             "80GiB ",
                             "1e3GB",
                             "0x10GB",
                             "nanGB",
                             "infGB",
                             "1,5GB",
                             "1.5.0GB",
                             "80GiBs",
                             "80 G B",
                             "80PB",
                             "80bytes",
                             "8 0GB",
                             ".GB",
                             ".",
                             "80GB\n",
                             "99999999999999999999",
                             "18446744073709551616",
                             "16777216TiB",
                             "18446745TB",
                             "99999999999999999999999999999999999999GB",
                             "1\xC2\xA0GB"};
  for (const char* text : bad) {
    SCOPED_TRACE(text);
    try {
      const Bytes read = parse_bytes(text);
      ADD_FAILURE() << "read as " << read.count();
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(parse_bytes(std::string("80GB\0", 5)), ConfigError);
  EXPECT_THROW(parse_bytes(std::string("80\0GB", 5)), ConfigError);
  EXPECT_THROW(parse_bytes(std::string(100'000, '9')), ConfigError);
}

TEST(ParseBytes, ReadsBackWholeNumbersOfEveryUnit) {
  const std::pair<const char*, Bytes> units[] = {{"", 1_B},      {"B", 1_B},    {"kB", 1_kB},   {"MB", 1_MB},
                                                 {"GB", 1_GB},   {"TB", 1_TB},  {"KiB", 1_KiB}, {"MiB", 1_MiB},
                                                 {"GiB", 1_GiB}, {"TiB", 1_TiB}};
  test_support::check_property(1000, [&] {
    const std::uint64_t number = *any_number();
    for (const auto& [unit, bytes] : units) {
      const Wide exact = Wide{number} * bytes.count();
      const std::string text = std::to_string(number) + unit;
      if (exact > kMax) {
        RC_ASSERT_THROWS_AS(parse_bytes(text), ConfigError);
      } else {
        RC_ASSERT(Wide{parse_bytes(text).count()} == exact);
      }
    }
  });
}

}  // namespace
}  // namespace shardplan
