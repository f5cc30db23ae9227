#include "base/text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/glob.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

TEST(Text, NumbersAreGroupedInThrees) {
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(1000), "1,000");
  EXPECT_EQ(with_commas(1'000'000), "1,000,000");
  EXPECT_EQ(with_commas(6'738'415'616), "6,738,415,616");
  EXPECT_EQ(with_commas(UINT64_MAX), "18,446,744,073,709,551,615");
}

TEST(Text, CaseOfAsciiLettersAlone) {
  EXPECT_TRUE(equal_in_any_case("", ""));
  EXPECT_TRUE(equal_in_any_case("H100-80GB", "h100-80gb"));
  EXPECT_FALSE(equal_in_any_case("h100", "h100 "));
  EXPECT_FALSE(equal_in_any_case("h100", "h10"));
  EXPECT_FALSE(equal_in_any_case("[", "{"));  // 32 apart, as letters are
  EXPECT_FALSE(equal_in_any_case("@", "`"));
  EXPECT_FALSE(equal_in_any_case("\xC4", "\xE4"));
  EXPECT_TRUE(equal_in_any_case("\xC4z", "\xC4Z"));
}

// matches[i][j]: the first i characters of the glob match the first j of the text. By definition, cell by cell.
bool matches_by_definition(const std::string& glob, const std::string& text) {
  std::vector<std::vector<bool>> matches(glob.size() + 1, std::vector<bool>(text.size() + 1, false));
  matches[0][0] = true;
  for (std::size_t i = 1; i <= glob.size(); ++i) {
    for (std::size_t j = 0; j <= text.size(); ++j) {
      if (glob[i - 1] == '*') {
        matches[i][j] = matches[i - 1][j] || (j > 0 && matches[i][j - 1]);
      } else if (j > 0) {
        matches[i][j] = matches[i - 1][j - 1] && (glob[i - 1] == '?' || glob[i - 1] == text[j - 1]);
      }
    }
  }
  return matches[glob.size()][text.size()];
}

TEST(Glob, StarsAndQuestionMarks) {
  EXPECT_TRUE(glob_matches("", ""));
  EXPECT_FALSE(glob_matches("", "a"));
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_FALSE(glob_matches("?", ""));
  EXPECT_TRUE(glob_matches("model.*.weight", "model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(glob_matches("model.*.weight", "model.layers.0.self_attn.q_proj.bias"));
  EXPECT_TRUE(glob_matches("*layers.?.*", "model.layers.7.mlp"));
  EXPECT_FALSE(glob_matches("*layers.?.*", "model.layers.17.mlp"));
  EXPECT_FALSE(glob_matches("model", "model.weight"));  // the whole text, not a part of it
  EXPECT_FALSE(glob_matches("weight", "model.weight"));
  EXPECT_FALSE(glob_matches("[ab]", "a"));
  EXPECT_TRUE(glob_matches("[ab]", "[ab]"));
}

TEST(Glob, AgreesWithTheDefinition) {
  test_support::check_property(3000, [] {
    const auto glob = *rc::gen::container<std::string>(rc::gen::element('a', 'b', '.', '*', '?'));
    auto text = *rc::gen::container<std::string>(rc::gen::element('a', 'b', '.'));
    if (*rc::gen::arbitrary<bool>()) {
      // A text made from the glob, so that many match.
      text.clear();
      for (const char c : glob) {
        text += c == '*' ? *rc::gen::container<std::string>(rc::gen::element('a', 'b'))
                         : std::string(1, c == '?' ? 'a' : c);
      }
    }
    RC_CLASSIFY(matches_by_definition(glob, text), "matches");
    RC_ASSERT(glob_matches(glob, text) == matches_by_definition(glob, text));
  });
}

// An exponential matcher would not return.
TEST(Glob, ManyStarsTakeNoTime) {
  std::string glob;
  for (int i = 0; i < 50; ++i) glob += "a*";
  EXPECT_FALSE(glob_matches(glob + "b", std::string(5000, 'a')));
  EXPECT_TRUE(glob_matches(glob, std::string(5000, 'a')));
}

}  // namespace
}  // namespace shardplan
