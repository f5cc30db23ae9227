#include "planner/formats/parameter_count.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "planner/formats/decimal.h"

namespace shardplan {

std::uint64_t parse_parameter_count(const std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> suffixes[] = {
      {"Kk", "e3"}, {"Mm", "e6"}, {"BbGg", "e9"}, {"Tt", "e12"}};
  std::string numeral = text;
  for (const auto& [letters, exponent] : suffixes) {
    if (!text.empty() && letters.find(text.back()) != std::string_view::npos) {
      numeral = text.substr(0, text.size() - 1);
      numeral += exponent;
    }
  }
  const auto count = exact_integer(numeral);
  if (!count || *count == 0) {
    throw ConfigError("--params", "",
                      fmt::format("expected a number of parameters such as 7e9, 7B or 350M, found \"{}\"", text));
  }
  return *count;
}

Catalog catalog_from_parameters(std::uint64_t elements) {
  CatalogBuilder builder(fmt::format("{} parameters", with_commas(elements)), "parameters");
  builder.begin_unit("model");
  builder.add({.name = "parameters", .shape = {elements}, .dtype = {}, .tied_to = {}});
  Catalog catalog = builder.finish();
  catalog.count_only = true;
  catalog.notes.emplace_back("only the number of parameters is known: model states are sized, nothing else");
  return catalog;
}

}  // namespace shardplan
