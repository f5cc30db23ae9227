// Runs memcalc as a user does.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

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

}  // namespace shardplan::test
