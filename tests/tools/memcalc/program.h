// Runs memcalc as a user does.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace shardplan::test {

struct Outcome {
  int status = -1;
  std::string out;
  std::string error;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline Outcome memcalc(const std::string& words) {
  const std::string errors = testing::TempDir() + "memcalc_test_stderr." + std::to_string(getpid());
  FILE* pipe = popen((std::string(MEMCALC) + " " + words + " 2>" + errors).c_str(), "r");
  Outcome outcome;
  char buffer[4096];
  while (const std::size_t count = fread(buffer, 1, sizeof buffer, pipe)) outcome.out.append(buffer, count);
  const int status = pclose(pipe);
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  outcome.error = read_file(errors);
  std::filesystem::remove(errors);
  return outcome;
}

// plan WORDS --json, which must work and say nothing on stderr.
inline boost::json::object plan(const std::string& words) {
  const Outcome outcome = memcalc("plan " + words + " --json");
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.status, 0);
  return boost::json::parse(outcome.out).as_object();
}

inline std::uint64_t number(const boost::json::value& value) {
  return value.to_number<std::uint64_t>();
}

inline bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// One line on stderr, nothing on stdout.
inline void expect_failure(const std::string& words, int status, const std::string& part) {
  const Outcome outcome = memcalc(words);
  EXPECT_EQ(outcome.status, status) << words << "\n" << outcome.error;
  EXPECT_EQ(outcome.out, "") << words;
  EXPECT_NE(outcome.error.find(part), std::string::npos) << words << ": " << outcome.error;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << words << ": " << outcome.error;
}

}  // namespace shardplan::test
