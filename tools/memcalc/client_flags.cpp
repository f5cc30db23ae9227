#include "tools/memcalc/client_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string_view>

#include "tools/memcalc/torchtitan_flags.h"

namespace shardplan::memcalc {
namespace {

// A word, or "word=N" with N from 1.
struct CountedWord {
  std::string word;
  std::optional<std::uint64_t> count;
};

// The whole of `digits` as a number of 1 or more, or nothing.
std::optional<std::uint64_t> positive(std::string_view digits) {
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (error != std::errc{} || end != digits.data() + digits.size() || count == 0) return std::nullopt;
  return count;
}

CountedWord counted_word(const std::string& flag, const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) return {text, std::nullopt};
  const std::optional<std::uint64_t> count = positive(std::string_view(text).substr(equals + 1));
  if (!count) {
    throw ConfigError(flag, "", fmt::format("expected a number of 1 or more behind '=', found '{}'", text));
  }
  return {text.substr(0, equals), count};
}

void set_recompute(PlanOptions& options, const std::string& text) {
  static const std::map<std::string, RecomputeKind> kinds{
      {"none", RecomputeKind::none},   {"selective", RecomputeKind::selective}, {"full", RecomputeKind::full},
      {"every", RecomputeKind::every}, {"invert", RecomputeKind::invert},       {"adjoint", RecomputeKind::adjoint}};
  const auto [word, count] = counted_word("--recompute", text);
  const auto kind = kinds.find(word);
  if (kind == kinds.end() || count.has_value() != (kind->second == RecomputeKind::every)) {
    throw ConfigError("--recompute", "",
                      fmt::format("expected none, selective, full, every=N, invert or adjoint, found '{}'", text));
  }
  options.client.recompute = kind->second;
  options.client.recompute_every = count.value_or(1);
  options.setup.recompute = kind->second == RecomputeKind::full ? Recompute::full : Recompute::none;
}

void set_loss(PlanOptions& options, const std::string& text) {
  static const std::map<std::string, LossKind> kinds{
      {"eager", LossKind::eager}, {"fused", LossKind::fused}, {"chunked", LossKind::chunked}};
  const auto [word, count] = counted_word("--loss", text);
  const auto kind = kinds.find(word);
  if (kind == kinds.end() || count.has_value() != (kind->second == LossKind::chunked)) {
    throw ConfigError("--loss", "", fmt::format("expected eager, fused or chunked=N, found '{}'", text));
  }
  options.client.loss = kind->second;
  options.client.loss_chunks = count.value_or(1);
}

void set_image_size(PlanOptions& options, const std::string& text) {
  const std::string_view whole = text;
  const std::size_t cross = std::min(whole.find('x'), whole.size());
  const auto height = positive(whole.substr(0, cross));
  const auto width = positive(whole.substr(std::min(cross + 1, whole.size())));
  if (!height || !width) {
    throw ConfigError("--image-size", "", fmt::format("expected HEIGHTxWIDTH in pixels, found '{}'", text));
  }
  options.client.image_height = *height;
  options.client.image_width = *width;
}

// A number, greater than 0.
double factor(const std::string& flag, const std::string& text, const char* expected) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || !(number > 0) || std::isinf(number)) {
    throw ConfigError(flag, "", fmt::format("expected {}, found '{}'", expected, text));
  }
  return number;
}

void set_imbalance(PlanOptions& options, const std::string& text) {
  constexpr const char* kExpected = "a number from 1 (all experts are chosen equally often), or worst";
  ExpertLoad& load = options.client.expert_load;
  load.imbalance =
      text == "worst" ? std::numeric_limits<double>::infinity() : factor("--moe-imbalance", text, kExpected);
  if (load.imbalance < 1) {
    throw ConfigError("--moe-imbalance", "", fmt::format("expected {}, found '{}'", kExpected, text));
  }
}

}  // namespace

void add_client_flags(CLI::App* app, PlanOptions& options) {
  constexpr const char* kGroup = "The client's code";
  add_count(app, "--seq", options.sequence, "tokens per sequence; without it activations are not counted");
  add_count(app, "--micro-batch", options.micro_batch, "sequences per micro-batch (1)");
  add_count(app, "--images", options.client.images,
            "images in each sequence, for a model that reads both; 0: text alone (1)");
  add_read(app, "--image-size", "their pixels, HEIGHTxWIDTH (the size that the model was made for)",
           [&options](const std::string& text) { set_image_size(options, text); });
  add_word<std::optional<Profile>>(
      app, "--profile", options.profile,
      "whose model code: hf-eager, hf-sdpa, hf-liger, megatron, torchtitan, litgpt or torchtune "
      "(hf-sdpa; engine megatron: megatron)",
      [](const std::string& text) { return std::optional(profile_named(text)); });
  add_word<std::optional<AttentionKind>>(
      app, "--attention", options.client.attention, "eager, sdpa or flash (the profile's)",
      word_of<std::optional<AttentionKind>>(
          "--attention",
          {{"eager", AttentionKind::eager}, {"sdpa", AttentionKind::sdpa}, {"flash", AttentionKind::flash}}));
  add_read(app, "--recompute",
           "what is computed again in the backward: none, selective, full, every=N, invert or adjoint (none)",
           [&options](const std::string& text) { set_recompute(options, text); });
  add_read(app, "--loss", "eager, fused or chunked=N (eager)",
           [&options](const std::string& text) { set_loss(options, text); });
  add_read(
      app, "--moe-imbalance",
      "what the most chosen experts get, which are the planned rank's, in even shares; worst: as few are chosen as "
      "can be (1)",
      [&options](const std::string& text) { set_imbalance(options, text); });
  app->get_option("--moe-imbalance")->type_name("SHARES|worst");
  add_read(app, "--moe-capacity-factor", "even shares that an expert takes; tokens beyond are dropped (none are)",
           [&options](const std::string& text) {
             options.client.expert_load.capacity_factor = factor("--moe-capacity-factor", text, "a number above 0");
           });
  add_torchtitan_flags(app, options.client);
  app->get_option("--moe-capacity-factor")->type_name("SHARES");
  for (const char* flag :
       {"--seq", "--micro-batch", "--images", "--image-size", "--profile", "--attention", "--recompute", "--loss",
        "--moe-imbalance", "--moe-capacity-factor", "--disable-loss-parallel", "--context-rotate-method"}) {
    app->get_option(flag)->group(kGroup);
  }
}

}  // namespace shardplan::memcalc
