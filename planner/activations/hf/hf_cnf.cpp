// Continuous flows (docs/flow-models.md) as torchdiffeq 0.2.5 integrates them: solvers.py and fixed_grid.py of torchdiffeq/_impl through
// all steps, whose backward is autograd's; or with recompute adjoint as its adjoint.py does, which keeps a block's first and
// last state and solves for the gradients backwards from there. The divergence is the noise's product with the Jacobian of the
// field, a backward whose own graph is kept (torch.autograd.grad with create_graph).
#include <fmt/format.h>

#include <array>
#include <functional>
#include <utility>

#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"
#include "planner/families/flow.h"

namespace shardplan::autograd {
namespace {

constexpr std::string_view kSolver = "residual";  // the module

// ---- The field ----

struct Layer {
  Parameters linear;
  Parameters gate;   // of the time
  Parameters shift;  // likewise
  bool takes_time = false;
};

// The network of a block.
struct Field {
  std::vector<Layer> layers;
  std::string function;  // between them
  std::uint64_t dims = 0;
};

Field field_of(const UnitView& block) {
  Field field;
  const auto named = [](std::size_t i, const char* part) { return fmt::format("net.{}.{}", i, part); };
  for (std::size_t i = 0; block.has(named(i, "layer")); ++i) {
    Layer layer;
    layer.linear = block[named(i, "layer")];
    if (layer.linear.adapter.a.defined()) throw NotModelled("adapters in a field");
    if (!is_trainable_dtype(layer.linear.weight.dtype())) throw NotModelled("quantised weights in a field");
    if (block.has(named(i, "gate"))) {
      layer.gate = block[named(i, "gate")];
      layer.shift = block[named(i, "shift")];
    }
    if (block.has(named(i, "activation"))) field.function = block.module(named(i, "activation")).function;
    field.layers.push_back(std::move(layer));
  }
  field.dims = field.layers.back().linear.output;
  std::uint64_t width = field.dims;
  for (Layer& layer : field.layers) {
    layer.takes_time = layer.linear.module->input == width + 1;
    width = layer.linear.output;
  }
  return field;
}

// weight.t(), which the product with the noise reads too: gradients of both are added up before they go to the parameter.
Value transposed(const Value& weight) {
  return weight.tape().record("t", std::span(&weight, 1), weight.viewed(weight.shape()), {}, same_gradient(weight));
}

Value linear(const Value& x, const Parameters& layer, const Value& weight) {
  return linear(x, weight, layer.bias, layer.output);
}

Value linear(const Value& x, const Parameters& layer) {
  return linear(x, layer, layer.weight);
}

// What the backward of a layer's function reads: its output, or its input.
struct Activated {
  Value output;
  Value read;
};

bool reads_its_output(const std::string& function) {
  return function == "tanh" || function == "relu";
}

Activated activated(const std::string& function, const Value& x) {
  if (!reads_its_output(function)) return {unary(function == "elu" ? "elu" : "softplus", x), x};
  Value output = unary_of_output(function == "tanh" ? "tanh" : "relu", x);
  return {output, output};
}

// Tensors that the gradient of what a function's backward reads passes through (FunctionsManual.cpp: softplus_double_backward,
// elu_double_backward; derivatives.yaml: tanh_backward, threshold_backward).
struct DoubleBackward {
  int temporaries = 0;
  bool compares = false;  // a mask besides
};

DoubleBackward double_backward_of(const std::string& function) {
  if (function == "softplus") return {6, true};
  if (function == "elu") return {4, true};
  return {function == "tanh" ? 2 : 0, false};
}

// The function's backward, as an operation that has a backward.
Value backward_of(const std::string& function, const Value& gradient, const Value& read) {
  const std::array inputs{gradient, read};
  std::vector<Value> saved{read};
  if (function != "relu") saved.push_back(gradient);
  return gradient.tape().record("activation backward", inputs, like("activation backward", gradient), std::move(saved),
                                [through = double_backward_of(function), incoming_needs = meta_of(gradient),
                                 of_read = meta_of(read)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
                                  std::vector<Value> gradients(2);
                                  gradients[0] = fresh(tape, "activation backward", incoming_needs);
                                  std::vector<Value> made;
                                  for (int i = 0; i < through.temporaries; ++i)
                                    made.push_back(fresh(tape, "activation double backward", of_read));
                                  if (through.compares)
                                    made.push_back(tape.allocate("less", of_read.shape, DType::boolean));
                                  gradients[1] = fresh(tape, "activation double backward", of_read);
                                  return gradients;
                                });
}

// What a layer's backward needs of its forward.
struct LayerRun {
  Value weight;
  Value gate;  // sigmoid
  Value read;  // by the backward of the function behind it
};

LayerRun begun(const Layer& layer, const Value& time) {
  LayerRun run;
  run.weight = transposed(layer.linear.weight);
  if (layer.gate.weight.defined()) run.gate = unary_of_output("sigmoid", linear(time.viewed({1, 1}), layer.gate));
  return run;
}

Value run_layer(const Layer& layer, const Value& time, const Value& x, const LayerRun& run) {
  if (layer.takes_time) {
    Tape& tape = x.tape();
    const Shape column{x.size(0), 1};
    const Value times = mul(tape.allocate("ones_like", column, x.dtype()), time);
    return linear(cat(std::array{times, x}, {x.size(0), x.size(1) + 1}), layer.linear, run.weight);
  }
  Value y = linear(x, layer.linear, run.weight);
  if (!run.gate.defined()) return y;
  const Value product = mul(y, run.gate);
  return add(product, linear(time.viewed({1, 1}), layer.shift));
}

// `gradient` of a layer's output to that of its input.
Value back_through(const Layer& layer, const LayerRun& run, Value gradient) {
  if (run.gate.defined()) gradient = mul(gradient, run.gate);
  const Shape shape{gradient.size(0), run.weight.size(1)};
  gradient = matmul(gradient, run.weight, shape);
  return layer.takes_time ? slice(gradient, {shape[0], shape[1] - 1}) : gradient;
}

// How autograd numbers what the field's own backward records. Inside a forward, by the count of its own thread, which is behind the
// forward's: it runs last where it may. Inside another backward, in that thread, in a row.
enum class Numbers : std::uint8_t { apart, in_a_row };

// d/dt of the state: the field, and minus its divergence, one behind the other. Numbered apart, what reads nothing of the network
// comes first here, and what the field's backward does not read comes last.
Value change_of(const Field& field, const Value& noise, const Value& time, const Value& state, Numbers numbers) {
  const std::uint64_t points = noise.size(0);
  const Value now = to(time, state.dtype());
  Value z = simple("slice", state, state.viewed({points, field.dims}));
  if (!z.requires_grad()) z = Tape::requiring_grad(z);
  const bool apart = numbers == Numbers::apart;
  const std::size_t hidden = field.layers.size() - 1;
  const bool waits = apart && hidden > 0 && !reads_its_output(field.function);  // the last of the functions
  const Layer& last = field.layers.back();
  const LayerRun of_last = begun(last, now);
  Value product = apart ? back_through(last, of_last, noise) : Value();
  std::vector<LayerRun> runs;
  Value x = z;
  for (std::size_t i = 0; i < hidden; ++i) {
    runs.push_back(begun(field.layers[i], now));
    x = run_layer(field.layers[i], now, x, runs[i]);
    runs[i].read = x;
    if (waits && i + 1 == hidden) break;
    Activated next = activated(field.function, x);
    runs[i].read = std::move(next.read);
    x = std::move(next.output);
  }
  if (!apart) {
    x = run_layer(last, now, x, of_last);
    product = back_through(last, of_last, noise);
  }
  for (std::size_t i = hidden; i-- > 0;) {
    product = backward_of(field.function, product, runs[i].read);
    product = back_through(field.layers[i], runs[i], std::move(product));
  }
  if (waits) x = activated(field.function, x).output;
  if (apart) x = run_layer(last, now, x, of_last);
  const Value divergence = sum_over(mul(product, noise), {points});
  return cat(std::array{x, neg(divergence)}, state.shape());
}

// ---- The solver ----

using Derivative = std::function<Value(const Value& time, const Value& state)>;

struct Step {
  Value added;  // to the state
  Value first;  // change at the step's begin, which lives until the next one
};

// What is named lives until the step is done, what is not until the operation that reads it has run.
Step step(const std::string& solver, const Derivative& derivative, const Value& start, const Value& end,
          const Value& length, const Value& y) {
  const auto later = [&] { return shift(length); };
  const auto moved = [&](Value change) {
    change = mul(change, length);
    return add(y, change);
  };
  Value k1 = derivative(start, y);
  if (solver == "euler") return {mul(k1, length), std::move(k1)};
  if (solver == "midpoint") {
    const Value half = scale(length);
    const Value middle = [&] { return add(y, mul(k1, half)); }();
    return {mul(derivative(later(), middle), length), std::move(k1)};
  }
  const auto third = [&] {
    Value change = mul(k1, length);
    change = scale(change);
    return add(y, change);
  };
  const auto two_thirds = [&](const Value& k2) {
    Value change = scale(k1);
    change = sub(k2, change);
    return moved(std::move(change));
  };
  const auto last = [&](const Value& k2, const Value& k3) {
    Value change = sub(k1, k2);
    change = add(change, k3);
    return moved(std::move(change));
  };
  const Value k2 = derivative(later(), third());
  const Value k3 = derivative(later(), two_thirds(k2));
  const Value k4 = derivative(end, last(k2, k3));
  Value sum = add(k2, k3);
  sum = scale(sum);
  sum = add(k1, sum);
  sum = add(sum, k4);
  sum = mul(sum, length);
  return {scale(sum), std::move(k1)};
}

// solution[i] = state, of a solution of two states.
Value written(const Value& solution, const Value& state) {
  const std::array inputs{solution, state};
  return solution.tape().record(
      "copy", inputs, solution.detached(), {},
      [whole = meta_of(solution), part = meta_of(state)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients(2);
        Value result = tape.allocate("copy", whole.shape, whole.dtype);
        gradients[1] = fresh(tape, "clone", part);
        if (whole.wanted) gradients[0] = std::move(result);
        return gradients;
      });
}

struct Solver {
  std::string name;
  std::uint64_t steps = 0;
};

Solver solver_of(const ForwardContext& context, const UnitView& block) {
  const std::string& name = block.module(kSolver).function;
  return {name, context.model.architecture.block_uses / uses_of_a_time_step(name)};
}

// The first state and the last, [2, n] (FixedGridODESolver.integrate). `purpose`: of the solution.
Value solve(const Solver& solver, const Derivative& derivative, const Value& first, Purpose purpose) {
  Tape& tape = first.tape();
  const Value grid = tape.allocate("arange", {solver.steps + 1}, DType::f32);
  const Purpose before = tape.set_purpose(purpose);
  Value solution = tape.allocate("empty", {2, first.elements()}, first.dtype());
  tape.set_purpose(before);
  solution = written(solution, first);
  Value y = first;
  Step taken;
  for (std::uint64_t i = 0; i < solver.steps; ++i) {
    const Value length = tape.allocate("sub", {}, DType::f32);
    taken = step(solver.name, derivative, grid.viewed({}), grid.viewed({}), length, y);
    Value next = add(y, taken.added);
    if (i + 1 == solver.steps) solution = written(solution, next);
    y = std::move(next);
  }
  return solution;
}

// ---- Through all steps, or by the adjoint ----

// Points and the logarithms of their densities in a row.
Value joined(const std::vector<Value>& parts) {
  std::uint64_t size = 0;
  for (const Value& part : parts) size += part.elements();
  return cat(parts, {size});
}

std::vector<Value> parameters_of(const Field& field) {
  std::vector<Value> parameters;
  for (const Layer& layer : field.layers) {
    for (const Parameters& of : {layer.linear, layer.gate, layer.shift}) {
      for (const Value& tensor : {of.weight, of.bias}) {
        if (tensor.defined() && tensor.requires_grad()) parameters.push_back(tensor);
      }
    }
  }
  return parameters;
}

// d/dt of (gradient of the time, state, its gradient, gradients of parameters), all in a row, where time runs backwards
// (augmented_dynamics of adjoint.py, _ReverseFunc of misc.py).
Value augmented_change(const Field& field, const Value& noise, std::span<const Value> parameters, const Value& time,
                       const Value& augmented) {
  Tape& tape = augmented.tape();
  const Value state = augmented.viewed({noise.size(0) * (noise.size(1) + 1)});
  const Value ahead = [&] {
    const Value now = Tape::requiring_grad(neg(time));
    const Tape::Unary derivative = [&](const Value& y) { return change_of(field, noise, now, y, Numbers::in_a_row); };
    const Tape::Gradients made = tape.gradients_of(derivative, state, parameters, state);
    std::vector<Value> parts{tape.allocate("zeros_like", {}, augmented.dtype()), made.output, made.of_input};
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Value& gradient = made.of_parameters[i];
      parts.push_back(gradient.defined() ? gradient
                                         : tape.allocate("zeros_like", parameters[i].shape(), parameters[i].dtype()));
    }
    return joined(parts);
  }();
  return scale(ahead);
}

// The gradients of a block's first state and of its parameters: views of one solution.
std::vector<Value> solved_back(const Solver& solver, const Field& field, const Value& noise, const Value& solution,
                               const Value& gradient) {
  Tape& tape = solution.tape();
  const Value times = tape.allocate("flip", {2}, DType::f32);
  const std::vector<Value> parameters = parameters_of(field);
  const Shape state{solution.size(1)};
  std::vector<Value> parts{tape.allocate("zeros", {}, solution.dtype()), solution.viewed(state),
                           gradient.viewed(state)};
  for (const Value& parameter : parameters) {
    parts.push_back(tape.allocate("zeros_like", parameter.shape(), parameter.dtype()));
  }
  const Derivative derivative = [&](const Value& time, const Value& augmented) {
    return augmented_change(field, noise, parameters, time, augmented);
  };
  const Value solved = solve(solver, derivative, joined(parts), Purpose::gradient);
  std::vector<Value> gradients{solved.viewed(state)};
  for (const Value& parameter : parameters) gradients.push_back(solved.viewed(parameter.shape()));
  return gradients;
}

Value solve_by_adjoint(const Solver& solver, const UnitView& block, const Value& noise, const Value& first) {
  Tape& tape = first.tape();
  const Field field = field_of(block);
  const Derivative derivative = [&](const Value& time, const Value& state) {
    return tape.forgetting([&](const Value& y) { return change_of(field, noise, time, y, Numbers::in_a_row); }, state);
  };
  const Value times = tape.allocate("arange", {2}, DType::f32);
  Value solution;
  {
    const NoGrad no_grad(tape);
    solution = solve(solver, derivative, first.detached(), Purpose::activation);
  }
  std::vector<Value> inputs{first};
  for (const Value& parameter : parameters_of(field)) inputs.push_back(parameter);
  return tape.record("adjoint", inputs, solution, {solution, noise, times},
                     [solver, block](Tape&, std::span<const Value> saved, std::vector<Value>& incoming) {
                       return solved_back(solver, field_of(block), saved[1], saved[0], incoming[0]);
                     });
}

// ---- The model ----

// Points and the logarithms of their densities, of the last state of a solution.
std::vector<Value> last_state(const Value& solution, std::uint64_t points) {
  const std::uint64_t dims = solution.size(1) / points - 1;
  return parts_of(solution, std::array{Shape{points, dims}, Shape{points}});
}

// `input`: the batch's points, or the solution of the block before.
Value cnf_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Tape& tape = context.tape;
  const std::uint64_t points = context.batch();
  const std::vector<Value> state = block.number() == 0
                                       ? std::vector<Value>{input, tape.allocate("new_zeros", {points}, input.dtype())}
                                       : last_state(input, points);
  const Value noise = context.shared.condition.viewed(state[0].shape());
  const Value first = joined(state);
  const Solver solver = solver_of(context, block);
  if (context.client.recompute == RecomputeKind::adjoint) return solve_by_adjoint(solver, block, noise, first);
  const Field field = field_of(block);
  const Derivative derivative = [&](const Value& time, const Value& y) {
    return change_of(field, noise, time, y, Numbers::apart);
  };
  return solve(solver, derivative, first, Purpose::activation);
}

// Minus the logarithm of the density of all points: a normal one at the end of the last block.
Value cnf(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::uint64_t points = context.batch();
  const Value batch = tape.outside({points, context.model.architecture.hidden}, context.setup.policy.compute);
  const std::uint64_t blocks = first_blocks(context, "flows").count;
  std::uint64_t held = 0;
  for (const UnitRun& run : context.held.runs) held += run.count;
  if (held != blocks) throw NotModelled("a part of the blocks");
  tape.enter(unit_name(context.held.runs[0], 0));
  // Of all blocks: each has a part of it.
  const Shape noises{blocks, points, batch.size(1)};
  context.shared.condition = tape.allocate("randn", noises, batch.dtype());
  const Value solution = run_blocks(context, cnf_block, batch, "flows");
  context.shared = {};
  const Purpose before = tape.set_purpose(Purpose::loss);
  const std::vector<Value> end = last_state(solution, points);
  const Value density = sum_over(scale(pow(end[0])), {points});
  Value loss = total(sub(density, end[1]));
  tape.set_purpose(before);
  return loss;
}

}  // namespace

std::span<const HfFamily> hf_cnf_families() {
  static constexpr HfFamily families[] = {{"cnf", cnf}};
  return families;
}

}  // namespace shardplan::autograd
