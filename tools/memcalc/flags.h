// How a flag of memcalc is made with CLI11: words from a table, whole numbers. Included by the sources that say which flags
// there are, and by no other.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shardplan::memcalc {

// A flag whose word is read by `read`, which throws ConfigError.
inline void add_read(CLI::App* app, const std::string& flag, const std::string& help,
                     std::function<void(const std::string&)> read) {
  app->add_option_function<std::string>(
         flag,
         [read = std::move(read)](const std::string& text) {
           try {
             read(text);
           } catch (const ConfigError& error) {
             throw CLI::ValidationError(error.source(), error.problem());
           }
         },
         help)
      ->type_name("NAME");
}

// Every flag that is a word from a table. The message of a wrong word comes from the table.
template <typename Value>
void add_word(CLI::App* app, const std::string& flag, Value& value, const std::string& help,
              std::function<Value(const std::string&)> read) {
  add_read(app, flag, help, [&value, read = std::move(read)](const std::string& text) { value = read(text); });
}

template <typename Enum>
std::function<Enum(const std::string&)> word_of(const char* flag, std::map<std::string, Enum> words) {
  return [flag, words = std::move(words)](const std::string& text) {
    const auto found = words.find(text);
    if (found != words.end()) return found->second;
    std::vector<std::string> known;
    for (const auto& word : words) known.push_back(word.first);
    throw ConfigError(flag, "", fmt::format("'{}' is not known: expected {}", text, fmt::join(known, " or ")));
  };
}

// Whole numbers only: "8", not "8.5", "-1" or "8x".
template <typename Count>
void add_count(CLI::App* app, const std::string& flag, Count& value, const std::string& help) {
  app->add_option(flag, value, help)->type_name("N")->check([](const std::string& text) -> std::string {
    if (!text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == std::string::npos) return {};
    return fmt::format("'{}' is not a whole number", text);
  });
}

}  // namespace shardplan::memcalc
