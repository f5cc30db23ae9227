#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "planner/formats/decimal.h"
#include "planner/formats/near_names.h"
#include "planner/formats/parameter_count.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using test_support::check_property;
using test_support::expect_config_error;

TEST(ExactInteger, RefusesWhatIsNone) {
  for (const char* text : {"",
                           ".",
                           "1.",
                           ".5",
                           "1.5",
                           "1e-1",
                           "15e-2",
                           "-1",
                           "+1",
                           "1e",
                           "1e+",
                           "e5",
                           "1x",
                           "1 ",
                           " 1",
                           "0x10",
                           "1.0.0",
                           "1e1e1",
                           "18446744073709551616",
                           "1e20",
                           "1e1000000000000000000000",
                           "inf",
                           "1,000"}) {
    EXPECT_FALSE(exact_integer(text)) << text;
  }
}

TEST(ExactInteger, ReadsAnyNotationOfTheSameNumber) {
  EXPECT_EQ(exact_integer("0e1000000000000000000000"), 0U);
  EXPECT_EQ(exact_integer("000"), 0U);
  EXPECT_EQ(exact_integer("0.0e-99"), 0U);
  check_property(500, [](std::uint64_t value) {
    const std::string digits = std::to_string(value);
    RC_ASSERT(exact_integer(digits) == value);
    RC_ASSERT(exact_integer(digits + ".000") == value);
    RC_ASSERT(exact_integer(digits + "000e-3") == value);
    if (digits.size() > 1) {
      const auto exponent = std::to_string(digits.size() - 1);
      RC_ASSERT(exact_integer(digits.substr(0, 1) + "." + digits.substr(1) + "E+" + exponent) == value);
    }
  });
}

TEST(ParameterCount, ReadsWhatPeopleWrite) {
  const std::pair<const char*, std::uint64_t> cases[] = {{"7e9", 7'000'000'000},
                                                         {"7B", 7'000'000'000},
                                                         {"7b", 7'000'000'000},
                                                         {"7G", 7'000'000'000},
                                                         {"1.5B", 1'500'000'000},
                                                         {"350M", 350'000'000},
                                                         {"2k", 2000},
                                                         {"1T", 1'000'000'000'000},
                                                         {"7000000000", 7'000'000'000},
                                                         {"1", 1},
                                                         {"0.5M", 500'000},
                                                         {"13.0159B", 13'015'900'000}};
  for (const auto& [text, count] : cases) EXPECT_EQ(parse_parameter_count(text), count) << text;
  for (const char* text :
       {"", "B", "7 B", "-7B", "7BB", "0", "0B", "1.5", "7e9B", "1e30", "20000000T", "seven", "7Gi"}) {
    SCOPED_TRACE(text);
    expect_config_error([&] { parse_parameter_count(text); }, "--params", "", std::string("found \"") + text + '"');
  }
}

TEST(ParameterCount, MakesACatalogOfOneTensor) {
  const Catalog catalog = catalog_from_parameters(7'000'000'000);
  EXPECT_TRUE(catalog.count_only);
  EXPECT_EQ(catalog.name, "7,000,000,000 parameters");
  EXPECT_EQ(parameter_elements(catalog), 7'000'000'000U);
  EXPECT_EQ(trainable_elements(catalog), 7'000'000'000U);
  EXPECT_EQ(unit_count(catalog), 1U);
  EXPECT_EQ(tensor_count(catalog), 1U);
  EXPECT_FALSE(catalog.notes.empty());
}

TEST(NearNames, CountsEdits) {
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("llama", "llama"), 0U);
  EXPECT_EQ(edit_distance("lama", "llama"), 1U);
  EXPECT_EQ(edit_distance("lalma", "llama"), 1U);
  EXPECT_EQ(edit_distance("gpt-2", "gpt2"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  check_property(200, [](const std::string& a, const std::string& b) {
    RC_ASSERT(edit_distance(a, b) == edit_distance(b, a));
    RC_ASSERT((edit_distance(a, b) == 0) == (a == b));
  });
}

TEST(NearNames, NearestFirst) {
  const std::vector<std::string> names{"gpt2", "llama-2-13b", "llama-2-70b", "llama-2-7b", "llama-3-8b"};
  EXPECT_EQ(near_names("lama-2-7b", names, 2), (std::vector<std::string>{"llama-2-7b", "llama-2-70b"}));
  EXPECT_EQ(near_names("llama-2", names, 3), (std::vector<std::string>{"llama-2-7b", "llama-2-13b", "llama-2-70b"}));
  EXPECT_EQ(near_names("gtp2", names, 1), (std::vector<std::string>{"gpt2"}));
  EXPECT_EQ(near_names(std::string(1'000'000, 'x'), names, 9).size(), 5U);
}

}  // namespace
}  // namespace shardplan
