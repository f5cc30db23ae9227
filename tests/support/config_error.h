// Expectations on ConfigErrors: which file, which key, and what is said about it.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace shardplan::test_support {

// `act` throws a ConfigError with exactly this source and key, whose problem contains `problem`.
template <typename Act>
void expect_config_error(Act act, const std::string& source, const std::string& key, const std::string& problem) {
  try {
    act();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), source) << error.what();
    EXPECT_EQ(error.key(), key) << error.what();
    EXPECT_NE(error.problem().find(problem), std::string::npos) << error.what() << "\nlacks: " << problem;
    return;
  }
  ADD_FAILURE() << "no error; expected " << source << ": " << key << ": " << problem;
}

}  // namespace shardplan::test_support
