// Normalizing flows: models that can be run backwards, so that their activations need not be kept. Their config is a
// small format of our own, described with the names of the tensors in docs/flow-models.md.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

#include "planner/families/decoder.h"
#include "planner/families/flow.h"

namespace shardplan {
namespace {

constexpr Head kWhole[] = {{"", "", "", HeadOutput::none, false}};

// The value of `attribute`, which is one of `choices`; the first is the default.
std::string read_choice(const ModelConfig& config, std::string_view attribute,
                        std::initializer_list<std::string_view> choices) {
  std::string choice = config.text(attribute, *choices.begin());
  if (std::find(choices.begin(), choices.end(), choice) != choices.end()) return choice;
  std::string expected;
  for (const std::string_view known : choices) {
    expected += fmt::format("{}\"{}\"", expected.empty() ? "" : ", ", known);
  }
  config.fail(attribute, fmt::format("expected one of {}, found \"{}\"", expected, choice));
}

struct Glow {
  std::uint64_t levels = 0;
  std::uint64_t image = 0;     // pixels of a side
  std::uint64_t steps = 0;     // of each level
  std::uint64_t channels = 0;  // of the first level, after its squeeze
  std::uint64_t hidden = 0;    // channels inside a coupling network
  bool affine = false;
  std::string permutation;
  bool actnorm = false;
  bool learned_prior = false;
};

Glow read_glow(ModelConfig& config) {
  Glow g;
  g.levels = config.required_size("levels");
  g.steps = config.required_size("steps_per_level");
  g.hidden = config.required_size("hidden_channels");
  const std::uint64_t image = config.required_size("image_size");
  g.image = image;
  const std::uint64_t channels = config.size("channels", 3);
  g.affine = read_choice(config, "coupling", {"affine", "additive"}) == "affine";
  g.permutation = read_choice(config, "permutation", {"convolution", "lu", "reverse"});
  g.actnorm = config.flag("actnorm", true);
  g.learned_prior = config.flag("learned_prior", true);
  if (g.levels > 30 || image % (std::uint64_t{1} << g.levels) != 0) {
    config.fail("levels", fmt::format("halve the image {} times, so expected 2^{} to divide image_size, {}", g.levels,
                                      g.levels, image));
  }
  // Each level's squeeze makes four channels of one, and its split gives half of them away.
  g.channels = 4 * channels;
  if (g.channels > ModelConfig::kLargestSize >> g.levels) {
    config.fail("levels", fmt::format("make more than {} channels", ModelConfig::kLargestSize));
  }
  if (g.steps > ModelConfig::kMostListed / g.levels) {
    config.fail("steps_per_level", fmt::format("expected at most {} steps in all levels", ModelConfig::kMostListed));
  }
  return g;
}

// One factor and often one summand for each channel: what goes in is kept for backward, unless it is recomputed.
Modules scaled(std::string name, std::uint64_t channels) {
  return activation(std::move(name), "scale", channels);
}

// y = exp(log_scale) x + bias, its parameters set by the first batch.
Modules actnorm(std::uint64_t channels) {
  return join({parameter("actnorm.log_scale", {channels, 1, 1}), parameter("actnorm.bias", {channels, 1, 1}),
               scaled("actnorm.scale", channels)});
}

// A 1x1 convolution that can be inverted. Decomposed, its weight is order x lower x (upper + the diagonal
// sign x exp(log_diagonal)): the determinant is a sum; order and sign, which never change, are buffers.
Modules permutation(const Glow& g, std::uint64_t channels) {
  if (g.permutation == "reverse") return {};
  Modules module = convolution("permutation", channels, channels, {1, 1}, false);
  if (g.permutation == "lu") {
    module[0].tensors = {{.name = "lower", .shape = {channels, channels}},
                         {.name = "upper", .shape = {channels, channels}},
                         {.name = "log_diagonal", .shape = {channels}}};
  }
  return module;
}

// Starts as zero: a 3x3 convolution and a factor for each channel.
Modules zero_convolution(const std::string& name, std::uint64_t input, std::uint64_t output) {
  Modules module = convolution(name, input, output, {3, 3}, true);
  module[0].tensors.push_back({.name = "log_scale", .shape = {output, 1, 1}});
  return join({std::move(module), scaled(name + ".scale", output)});
}

// Half of the channels says what is done with the other: y = x + t, or y = (x + t) sigmoid(s).
Modules coupling(const Glow& g, std::uint64_t channels) {
  const std::uint64_t half = channels / 2;
  return below(
      "coupling",
      join({convolution("net.0", half, g.hidden, {3, 3}, true), activation("net.1", "relu", g.hidden),
            convolution("net.2", g.hidden, g.hidden, {1, 1}, true), activation("net.3", "relu", g.hidden),
            zero_convolution("net.4", g.hidden, g.affine ? channels : half),
            g.affine ? join({activation("sigmoid", "sigmoid", half), multiply("multiply", half)}) : Modules{}}));
}

// The kept half says mean and deviation of the half that leaves.
Modules split_prior(std::uint64_t channels) {
  return zero_convolution("prior", channels / 2, channels);
}

// Levels of steps of actnorm, permutation and coupling (Dinh et al. 2014, arXiv:1410.8516: additive; Dinh et al. 2016,
// arXiv:1605.08803: affine, levels; Kingma and Dhariwal 2018, arXiv:1807.03039: the rest). A step is a block.
void glow(ModelConfig& config, ModelBuilder& model) {
  const Glow g = read_glow(config);
  model.describe({.hidden = g.channels, .intermediate = g.hidden, .layers = g.levels * g.steps, .image_side = g.image});
  std::uint64_t channels = g.channels;
  for (std::uint64_t level = 0; level < g.levels; ++level) {
    const bool splits = level + 1 < g.levels;
    const Modules step =
        join({g.actnorm ? actnorm(channels) : Modules{}, permutation(g, channels), coupling(g, channels)});
    const bool with_prior = splits && g.learned_prior;
    model.blocks("flows", g.steps - (with_prior ? 1 : 0), step);
    if (with_prior) model.blocks("flows", 1, join({step, split_prior(channels)}));
    for (std::uint64_t i = 0; g.permutation == "lu" && i < g.steps; ++i) {
      const std::string name = fmt::format("flows.{}.permutation", level * g.steps + i);
      model.buffer(name + ".order", {channels, channels});
      model.buffer(name + ".sign", {channels});
    }
    if (splits) channels *= 2;
  }
  if (g.learned_prior) model.add(zero_convolution("prior", channels, 2 * channels));
}

constexpr std::uint64_t kMostTimeSteps = 4'096;

// A linear module that knows the time t: not at all, as one more feature, or y = (W x + b) sigmoid(gate(t)) + shift(t).
Modules timed_linear(const std::string& conditioning, std::uint64_t input, std::uint64_t output) {
  if (conditioning == "ignore") return linear("layer", input, output, true);
  if (conditioning == "concat") return linear("layer", input + 1, output, true);
  return join({linear("layer", input, output, true), linear("gate", 1, output, true),
               activation("sigmoid", "sigmoid", output), multiply("multiply", output),
               linear("shift", 1, output, false)});
}

// A continuous flow: blocks that integrate dx/dt = net(t, x), a multilayer perceptron (Grathwohl et al. 2018,
// arXiv:1810.01367; Chen et al. 2018, arXiv:1806.07366). A block is a unit.
void cnf(ModelConfig& config, ModelBuilder& model) {
  const std::uint64_t dims = config.required_size("data_dims");
  const auto hidden = config.counts("hidden_dims");
  if (!hidden) config.fail("hidden_dims", "expected the widths of the hidden layers");
  const std::uint64_t blocks = config.size("blocks", 1);
  const std::string conditioning = read_choice(config, "conditioning", {"concat", "ignore", "concatsquash"});
  const std::string function = read_choice(config, "activation", {"softplus", "tanh", "elu", "relu"});
  const std::string solver = read_choice(config, "solver", {"rk4", "midpoint", "euler"});
  const std::uint64_t time_steps = config.size("time_steps", 20);
  if (time_steps > kMostTimeSteps) {
    config.fail("time_steps", fmt::format("expected at most {}, found {}", kMostTimeSteps, time_steps));
  }

  Modules net;
  const auto append = [&net](Modules more) { net.insert(net.end(), more.begin(), more.end()); };
  std::uint64_t input = dims;
  for (std::size_t i = 0; i < hidden->size(); ++i) {
    const std::uint64_t width = (*hidden)[i];
    if (width == 0) config.fail("hidden_dims", "expected positive widths, found 0");
    append(below(fmt::format("net.{}", i),
                 join({timed_linear(conditioning, input, width), activation("activation", function, width)})));
    input = width;
  }
  append(below(fmt::format("net.{}", hidden->size()), timed_linear(conditioning, input, dims)));
  append(residual(solver));
  model.describe({.hidden = dims,
                  .layers = blocks,
                  .max_positions = 1,  // a point is all of its sequence
                  .block_uses = time_steps * uses_of_a_time_step(solver)});
  model.blocks("flows", blocks, net);
}

}  // namespace

std::uint64_t evaluations_of(std::string_view solver) {
  for (const auto& [name, evaluations] : {std::pair{"euler", 1U}, {"midpoint", 2U}, {"rk4", 4U}}) {
    if (solver == name) return evaluations;
  }
  SHARDPLAN_CHECK(false, "an unknown solver");
  return 0;
}

std::uint64_t uses_of_a_time_step(std::string_view solver) {
  return 2 * evaluations_of(solver);
}

std::span<const Family> flow_families() {
  static const Family families[] = {{"glow", "Glow", kWhole, {}, glow}, {"cnf", "CNF", kWhole, {}, cnf}};
  return families;
}

}  // namespace shardplan
