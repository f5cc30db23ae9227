#include "tests/support/catalogs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <ostream>
#include <tuple>
#include <utility>

namespace shardplan {

void showValue(const Catalog& catalog, std::ostream& out) {
  for (const UnitRun& run : catalog.runs) {
    out << fmt::format("\n  {}{} x {}:", run.name, run.numbered ? fmt::format(".{}", run.first_number) : "", run.count);
    for (const Tensor& tensor : run.tensors) {
      out << fmt::format(" {}[{}]", tensor.name, fmt::join(tensor.shape, ", "));
      if (tensor.dtype) out << ' ' << name(*tensor.dtype);
      if (!tensor.trainable) out << " frozen";
      if (!tensor.tied_to.empty()) out << " -> " << tensor.tied_to;
      out << ';';
    }
  }
}

void showValue(const Setup& setup, std::ostream& out) {
  out << fmt::format(
      "stage {} world {} replicate {} prefetch {} A {} cadence {} {} wire {} gradient {} accumulator {} "
      "optimizer {} ema {} recompute {} {} {}",
      setup.stage, setup.world_size, setup.replicate, setup.prefetch, setup.accumulation, name(resolved_cadence(setup)),
      setup.policy.name, name(setup.policy.wire), name(setup.policy.gradient), name(setup.policy.gradient_accumulator),
      states_of(setup.optimizer).name, setup.ema, name(setup.recompute), name(setup.transport), name(setup.reduction));
}

namespace test_support {
namespace {

Tensor tensor_of(std::string name, Shape shape) {
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  return tensor;
}

// What RapidCheck draws and shrinks; a catalog is made of it.
struct TensorChoice {
  std::uint64_t elements = 0;
  std::size_t kind = 0;  // of kKinds
};

struct RunChoice {
  std::uint64_t count = 0;  // 0: one unit that is not numbered
  std::vector<TensorChoice> tensors;
};

struct TieChoice {
  std::size_t run = 0;
  std::size_t owner_run = 0;
  std::size_t owner_unit = 0;
  std::size_t owner_tensor = 0;
};

struct Kind {
  std::optional<DType> dtype;
  bool trainable = true;
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> kAll{{{}, true},
                                      {{}, true},
                                      {{}, true},
                                      {{}, false},
                                      {DType::f32, true},
                                      {DType::bf16, true},
                                      {DType::f16, true},
                                      {DType::f64, true},
                                      {DType::f32, false},
                                      {DType::i8, false},
                                      {DType::nf4, false},
                                      {DType::f8_e4m3, false},
                                      {DType::f6_e2m3, false}};
  return kAll;
}

// Every tie that points backwards to a tensor that owns its elements; the others are dropped. Within a run, all units
// use a tensor of its first one.
void add_tie(std::vector<UnitRun>& runs, const TieChoice& choice, std::size_t index) {
  const std::size_t run = choice.run % runs.size();
  const std::size_t owner_run = choice.owner_run % runs.size();
  if (owner_run > run || runs[owner_run].tensors.empty()) return;
  const UnitRun& owner = runs[owner_run];
  const Tensor& owned = owner.tensors[choice.owner_tensor % owner.tensors.size()];
  if (!owned.tied_to.empty()) return;
  const std::uint64_t owner_unit = owner_run == run ? 0 : choice.owner_unit % owner.count;
  Tensor tied = owned;
  tied.name = fmt::format("tied{}", index);
  tied.tied_to = tensor_name(owner, owner_unit, owned);
  runs[run].tensors.push_back(std::move(tied));
}

Catalog catalog_of(const std::vector<RunChoice>& choices, const std::vector<TieChoice>& ties) {
  Catalog catalog;
  catalog.name = "random";
  for (const RunChoice& choice : choices) {
    const std::size_t index = catalog.runs.size();
    UnitRun run{.name = fmt::format("run{}", index),
                .numbered = choice.count > 0,
                .first_number = index,
                .count = std::max<std::uint64_t>(choice.count, 1),
                .tensors = {}};
    for (const TensorChoice& tensor : choice.tensors) {
      const Kind& kind = kinds()[tensor.kind];
      const std::string prefix = run.numbered ? "" : run.name + ".";
      Tensor& added =
          run.tensors.emplace_back(tensor_of(fmt::format("{}t{}", prefix, run.tensors.size()), {tensor.elements}));
      added.dtype = kind.dtype;
      added.trainable = kind.trainable;
    }
    catalog.runs.push_back(std::move(run));
  }
  for (std::size_t i = 0; i < ties.size() && !catalog.runs.empty(); ++i) add_tie(catalog.runs, ties[i], i);
  return catalog;
}

rc::Gen<std::uint64_t> element_count(Sizes sizes) {
  auto small = rc::gen::element<std::uint64_t>(0, 1, 2, 7, 63, 64, 65, 1009, 2048, 4096, 65537, 104729, 524288);
  if (sizes == Sizes::small) return small;
  return rc::gen::oneOf(small, rc::gen::element<std::uint64_t>(1 << 20, 16777213, 1 << 24, 4294967311, 1ULL << 33));
}

// RapidCheck draws from narrow ranges first and widens them from case to case; here every case draws from all.
template <typename T>
rc::Gen<T> unscaled(rc::Gen<T> gen) {
  return rc::gen::resize(rc::kNominalSize, std::move(gen));
}

template <typename T>
rc::Gen<std::vector<T>> up_to(int most, rc::Gen<T> element) {
  return rc::gen::resize(most, rc::gen::container<std::vector<T>>(unscaled(std::move(element))));
}

rc::Gen<RunChoice> any_run(Sizes sizes) {
  const auto tensor =
      rc::gen::map(rc::gen::tuple(element_count(sizes), rc::gen::inRange<std::size_t>(0, kinds().size())),
                   [](const auto& drawn) { return TensorChoice{std::get<0>(drawn), std::get<1>(drawn)}; });
  const auto count = rc::gen::element<std::uint64_t>(0, 0, 1, 2, 3, 4, 6, 9);
  return rc::gen::map(rc::gen::tuple(count, up_to(4, tensor)),
                      [](auto drawn) { return RunChoice{std::get<0>(drawn), std::move(std::get<1>(drawn))}; });
}

rc::Gen<TieChoice> any_tie() {
  const auto place = rc::gen::inRange<std::size_t>(0, 36);
  return rc::gen::map(rc::gen::tuple(place, place, place, place), [](const auto& drawn) {
    return TieChoice{std::get<0>(drawn), std::get<1>(drawn), std::get<2>(drawn), std::get<3>(drawn)};
  });
}

// Half of the time as named, half with overrides: a wire, an accumulator or a gradient of another type.
Policy any_policy() {
  Policy policy = policy_named(*rc::gen::element<std::string>("bf16-mixed", "fp32", "fp16-mixed", "bf16-mixed-fp32grad",
                                                              "bf16", "bf16-fp32state"));
  if (*rc::gen::arbitrary<bool>()) return policy;
  const auto dtype = rc::gen::element(DType::f32, DType::bf16, DType::f16, DType::f64);
  if (*rc::gen::arbitrary<bool>()) policy.wire = *dtype;
  if (*rc::gen::arbitrary<bool>()) policy.gradient_accumulator = *dtype;
  if (*rc::gen::arbitrary<bool>()) policy.gradient = *dtype;
  return policy;
}

}  // namespace

Catalog llama_catalog(const LlamaShape& shape) {
  CatalogBuilder builder(shape.name, "llama");
  const std::uint64_t hidden = shape.hidden;
  builder.begin_unit("model.embed_tokens");
  builder.add(tensor_of("model.embed_tokens.weight", {shape.vocabulary, hidden}));
  builder.add_run(
      "model.layers", 0, shape.layers,
      {tensor_of("self_attn.q_proj.weight", {hidden, hidden}),
       tensor_of("self_attn.k_proj.weight", {shape.key_value, hidden}),
       tensor_of("self_attn.v_proj.weight", {shape.key_value, hidden}),
       tensor_of("self_attn.o_proj.weight", {hidden, hidden}),
       tensor_of("mlp.gate_proj.weight", {shape.intermediate, hidden}),
       tensor_of("mlp.up_proj.weight", {shape.intermediate, hidden}),
       tensor_of("mlp.down_proj.weight", {hidden, shape.intermediate}), tensor_of("input_layernorm.weight", {hidden}),
       tensor_of("post_attention_layernorm.weight", {hidden})});
  builder.begin_unit("lm_head");
  builder.add(tensor_of("model.norm.weight", {hidden}));
  Tensor head = tensor_of("lm_head.weight", {shape.vocabulary, hidden});
  if (shape.tied_head) head.tied_to = "model.embed_tokens.weight";
  builder.add(std::move(head));
  return builder.finish();
}

Catalog gpt2_catalog(const Gpt2Shape& shape) {
  CatalogBuilder builder(shape.name, "gpt2");
  const std::uint64_t h = shape.hidden;
  builder.begin_unit("transformer.embeddings");
  builder.add(tensor_of("transformer.wte.weight", {50257, h}));
  builder.add(tensor_of("transformer.wpe.weight", {1024, h}));
  builder.add_run(
      "transformer.h", 0, shape.layers,
      {tensor_of("ln_1.weight", {h}), tensor_of("ln_1.bias", {h}), tensor_of("attn.c_attn.weight", {h, 3 * h}),
       tensor_of("attn.c_attn.bias", {3 * h}), tensor_of("attn.c_proj.weight", {h, h}),
       tensor_of("attn.c_proj.bias", {h}), tensor_of("ln_2.weight", {h}), tensor_of("ln_2.bias", {h}),
       tensor_of("mlp.c_fc.weight", {h, 4 * h}), tensor_of("mlp.c_fc.bias", {4 * h}),
       tensor_of("mlp.c_proj.weight", {4 * h, h}), tensor_of("mlp.c_proj.bias", {h})});
  builder.begin_unit("head");
  builder.add(tensor_of("transformer.ln_f.weight", {h}));
  builder.add(tensor_of("transformer.ln_f.bias", {h}));
  Tensor head = tensor_of("lm_head.weight", {50257, h});
  head.tied_to = "transformer.wte.weight";
  builder.add(std::move(head));
  return builder.finish();
}

std::vector<Catalog> known_catalogs() {
  std::vector<Catalog> catalogs;
  for (const LlamaShape& shape :
       std::initializer_list<LlamaShape>{{"tinyllama", 32000, 2048, 22, 5632, 256, false},
                                         {"llama-2-7b", 32000, 4096, 32, 11008, 4096, false},
                                         {"llama-2-13b", 32000, 5120, 40, 13824, 5120, false},
                                         {"llama-2-70b", 32000, 8192, 80, 28672, 1024, false},
                                         {"llama-3.1-8b", 128256, 4096, 32, 14336, 1024, false},
                                         {"llama-3.1-70b", 128256, 8192, 80, 28672, 1024, false},
                                         {"llama-3.1-405b", 128256, 16384, 126, 53248, 1024, false},
                                         {"llama-3.2-3b", 128256, 3072, 28, 8192, 1024, true},
                                         {"smollm-360m", 49152, 960, 32, 2560, 320, true}}) {
    catalogs.push_back(llama_catalog(shape));
  }
  for (const Gpt2Shape& shape : std::initializer_list<Gpt2Shape>{
           {"gpt2", 768, 12}, {"gpt2-medium", 1024, 24}, {"gpt2-large", 1280, 36}, {"gpt2-xl", 1600, 48}}) {
    catalogs.push_back(gpt2_catalog(shape));
  }
  return catalogs;
}

Catalog uniform_catalog(std::uint64_t units, std::uint64_t elements) {
  CatalogBuilder builder("uniform", "tensors");
  builder.add_run("layers", 0, units, {tensor_of("weight", {elements})});
  return builder.finish();
}

Catalog unfolded(const Catalog& catalog) {
  Catalog result = catalog;
  result.runs.clear();
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      UnitRun& unit = result.runs.emplace_back(run);
      unit.first_number += i;
      unit.count = 1;
    }
  }
  return result;
}

rc::Gen<Catalog> any_catalog(Sizes sizes) {
  return rc::gen::map(rc::gen::tuple(up_to(6, any_run(sizes)), up_to(4, any_tie())),
                      [](const auto& drawn) { return catalog_of(std::get<0>(drawn), std::get<1>(drawn)); });
}

rc::Gen<Setup> any_setup() {
  return unscaled(rc::gen::exec([] {
    Setup setup;
    const auto& worlds = rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(1, 65), rc::gen::inRange<std::uint64_t>(1, 9),
                                        rc::gen::element<std::uint64_t>(1000, 4096));
    setup.world_size = *worlds;
    const std::uint64_t replicate = *rc::gen::element<std::uint64_t>(1, 1, 2, 3, 4, 8);
    if (setup.world_size % replicate == 0) setup.replicate = replicate;
    setup.stage = *rc::gen::inRange(0, 4);
    setup.policy = any_policy();
    setup.optimizer = *rc::gen::element(OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd,
                                        OptimizerKind::sgd_momentum, OptimizerKind::lion);
    setup.ema = *rc::gen::arbitrary<bool>();
    setup.prefetch = *rc::gen::inRange<std::uint64_t>(0, 5);
    setup.accumulation = *rc::gen::inRange<std::uint64_t>(1, 5);
    if (*rc::gen::arbitrary<bool>()) setup.cadence = Cadence::micro_batch;
    setup.recompute = *rc::gen::element(Recompute::none, Recompute::full);
    setup.transport = *rc::gen::element(Transport::direct, Transport::staged);
    setup.reduction = *rc::gen::element(Reduction::canonical, Reduction::fast);
    return setup;
  }));
}

}  // namespace test_support
}  // namespace shardplan
