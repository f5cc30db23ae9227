// Pickles of plain data, and what is refused of others.
#include "planner/formats/pickle.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace shardplan {
namespace {

using namespace std::string_literals;

std::string refused(const std::string& bytes) {
  try {
    PickleDocument document(bytes, "x.pickle");
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

// pickle.dumps({"a": (1, [2.5, None]), "n": -3, "big": 2**40, "t": True}, 2) and protocol 4 of the same.
TEST(Pickle, ReadsPlainDataOfEachProtocol) {
  const std::string items =
      "X\1\0\0\0aK\1](G\x40\4\0\0\0\0\0\0Ne\x86X\1\0\0\0nJ\xfd\xff\xff\xffX\3\0\0\0big\x8a\6\0\0\0\0\0\1X\1\0\0\0t\x88u."s;
  const std::string framed =
      "\x8c\1aK\1](G\x40\4\0\0\0\0\0\0Ne\x86\x94\x8c\1nJ\xfd\xff\xff\xff\x8c\3big\x8a\6\0\0\0\0\0\1\x8c\1t\x88u."s;
  for (const std::string& bytes : {"\x80\2}("s + items, "\x80\4\x95\xff\0\0\0\0\0\0\0}\x94("s + framed}) {
    const PickleDocument document(bytes, "x.pickle");
    const PicklePart root = document.root();
    EXPECT_EQ(root["a"].size(), 2U);
    EXPECT_EQ(root["a"].at(0).as_count(), 1U);
    EXPECT_TRUE(root["a"].at(1).at(1).is_none());
    EXPECT_EQ(root["big"].as_count(), std::uint64_t{1} << 40);
    EXPECT_FALSE(root["c"].exists());
    EXPECT_EQ(root["c"].as_count_or_zero(), 0U);
    EXPECT_THROW(root["n"].as_count(), ConfigError);
    EXPECT_THROW(root["t"].as_count(), ConfigError);
  }
}

TEST(Pickle, RemembersValues) {
  // A text that is put as 0, and is the value too.
  const std::string bytes = "\x80\2}q\1X\1\0\0\0kq\0h\0s."s;
  const PickleDocument document(bytes, "x.pickle");
  EXPECT_EQ(document.root()["k"].as_text(), "k");
}

TEST(Pickle, ErrorsSayWhereAndWhat) {
  const std::string bytes = "\x80\2}X\1\0\0\0a](K\5}es."s;
  const PickleDocument document(bytes, "x.pickle");
  const PicklePart list = document.root()["a"];
  EXPECT_EQ(list.at(0).path(), "a[0]");
  EXPECT_EQ(list.at(1)["size"].path(), "a[1].size");
  try {
    list.at(1)["size"].as_count();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()), "x.pickle: a[1].size: expected an integer from 0, found nothing");
  }
}

// Classes and calls: cos\nsystem\n(S'...'\ntR. is the usual attack.
TEST(Pickle, RefusesWhatCanRun) {
  EXPECT_NE(refused("\x80\2cos\nsystem\n."s).find("opcode 0x63 is not of plain data"), std::string::npos);
  for (const char opcode : "RbcioPQ\x81\x82\x92\x93\x96"s) {
    EXPECT_NE(refused("\x80\2]"s + opcode + "."s), "") << static_cast<int>(opcode);
  }
}

TEST(Pickle, RefusesWhatIsBroken) {
  for (const std::string& bytes : {""s,
                                   "{}"s,
                                   "\x80"s,
                                   "\x80\1N."s,
                                   "\x80\6N."s,
                                   "\x80\2."s,
                                   "\x80\2N"s,
                                   "\x80\2NN."s,
                                   "\x80\2(N."s,
                                   "\x80\2a."s,
                                   "\x80\2Na."s,
                                   "\x80\2NNs."s,
                                   "\x80\2}Ns."s,
                                   "\x80\2}(Nu."s,
                                   "\x80\2e."s,
                                   "\x80\2\x87."s,
                                   "\x80\2h\0."s,
                                   "\x80\2q\0N."s,
                                   "\x80\2X\xff\xff\xff\xff."s,
                                   "\x80\2\x8a\x09\1\1\1\1\1\1\1\1\1."s}) {
    EXPECT_NE(refused(bytes), "");
  }
}

// A list may hold itself: reading it ends all the same.
TEST(Pickle, AListInItself) {
  const std::string bytes = "\x80\2]q\0h\0a."s;
  const PickleDocument document(bytes, "x.pickle");
  EXPECT_EQ(document.root().size(), 1U);
  EXPECT_EQ(document.root().at(0).at(0).size(), 1U);
  EXPECT_NE(document.root().at(0).path(), "");
}

}  // namespace
}  // namespace shardplan
