// ds_config.json: what DeepSpeed makes of it, key by key; what is refused; that what is written reads back.
#include "planner/formats/ds_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "planner/engines/deepspeed.h"
#include "planner/formats/ds_config_keys.h"
#include "planner/formats/ds_config_writer.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using test_support::check_property;
using test_support::expect_config_error;

TrainingConfig read(const std::string& text) {
  return ds_config(text, "ds.json");
}
TrainingConfig read_zero(const std::string& members) {
  return read(R"({"zero_optimization": {"stage": 3, )" + members + "}}");
}
DeepSpeedOptions zero_options(const std::string& members) {
  return read_zero(members).deepspeed.value();
}
void expect_refused(const std::string& text, const std::string& key, const std::string& problem) {
  expect_config_error([&] { read(text); }, "ds.json", key, problem);
}
TrainingConfig read_data(const std::string& name) {
  return ds_config_in_file(std::string(DS_CONFIGS) + "/" + name);
}

TEST(DsConfig, AnEmptyFileHasDeepSpeedsDefaults) {
  const TrainingConfig config = read("{}");
  EXPECT_EQ(config.deepspeed, DeepSpeedOptions{});
  EXPECT_EQ(config.engine->value, Engine::deepspeed);
  EXPECT_EQ(config.stage->value, 0);
  EXPECT_EQ(config.precision->value, "fp32");
  EXPECT_FALSE(config.micro_batch || config.global_batch || config.accumulation || config.optimizer);
  EXPECT_TRUE(config.notes.empty());
}

TEST(DsConfig, EveryStage3KeyIsAlsoWithoutThePrefix) {
  const std::pair<const char*, std::uint64_t DeepSpeedOptions::*> counts[] = {
      {"prefetch_bucket_size", &DeepSpeedOptions::stage3_prefetch_bucket_size},
      {"param_persistence_threshold", &DeepSpeedOptions::stage3_param_persistence_threshold},
      {"model_persistence_threshold", &DeepSpeedOptions::stage3_model_persistence_threshold},
      {"max_live_parameters", &DeepSpeedOptions::stage3_max_live_parameters},
      {"max_reuse_distance", &DeepSpeedOptions::stage3_max_reuse_distance}};
  for (const auto& [key, member] : counts) {
    for (const char* prefix : {"", "stage3_"}) {
      EXPECT_EQ(zero_options(fmt::format("\"{}{}\": 4321", prefix, key)).*member, 4321U) << prefix << key;
    }
    expect_refused(fmt::format(R"({{"zero_optimization": {{"stage3_{0}": 1, "{0}": 1}}}})", key),
                   fmt::format("zero_optimization.{}", key), "is the same as stage3_");
  }
  for (const char* prefix : {"", "stage3_"}) {
    EXPECT_TRUE(zero_options(fmt::format("\"{}allgather_sequential\": true", prefix)).stage3_allgather_sequential);
    for (const char* key : {"gather_16bit_weights_on_model_save", "use_all_reduce_for_fetch_params"}) {
      EXPECT_EQ(zero_options(fmt::format("\"{}{}\": true", prefix, key)), DeepSpeedOptions{});
    }
    EXPECT_EQ(read_zero(fmt::format("\"{}module_granularity_threshold\": 7", prefix)).notes.size(), 1U);
  }
}

TEST(DsConfig, NumbersAndFlagsAsPydanticReadsThem) {
  for (const char* number : {"500", "5e2", "500.0", "\"500\""}) {
    EXPECT_EQ(zero_options(fmt::format("\"reduce_bucket_size\": {}", number)).reduce_bucket_size, 500U) << number;
  }
  for (const char* number : {"500.5", "-1", "null", "\"5e2\"", "\"many\"", "1e20"}) {
    expect_refused(fmt::format(R"({{"zero_optimization": {{"reduce_bucket_size": {}}}}})", number),
                   "zero_optimization.reduce_bucket_size", "expected a non-negative integer");
  }
  for (const char* flag : {"false", "0", "\"false\"", "\"no\""}) {
    EXPECT_FALSE(zero_options(fmt::format("\"reduce_scatter\": {}", flag)).reduce_scatter) << flag;
  }
  for (const char* flag : {"2", "\"maybe\"", "null"}) {
    expect_refused(fmt::format(R"({{"zero_optimization": {{"reduce_scatter": {}}}}})", flag),
                   "zero_optimization.reduce_scatter", "expected true or false");
  }
  EXPECT_EQ(zero_options("\"overlap_comm\": null").overlap_comm, std::nullopt);
  EXPECT_EQ(zero_options("\"overlap_comm\": false").overlap_comm, false);
}

TEST(DsConfig, AutoIsAbsent) {
  std::string text = R"({"zero_optimization": {)";
  for (const std::string_view key : ds_config_keys::kZero) text += fmt::format("\"{}\": \"auto\", ", key);
  text.resize(text.size() - 2);
  const TrainingConfig config = read(text + R"(}, "train_batch_size": "auto", "gradient_accumulation_steps": "auto",
      "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}})");
  EXPECT_EQ(config.deepspeed, DeepSpeedOptions{});
  EXPECT_EQ(config.stage->value, 0);
  EXPECT_FALSE(config.global_batch || config.accumulation);
  EXPECT_EQ(config.optimizer->value, OptimizerKind::adamw);
  EXPECT_EQ(config.notes.size(), 3U);  // of what Hugging Face's Trainer fills in
}

TEST(DsConfig, DeprecatedKeysMeanWhatTheyMeant) {
  EXPECT_EQ(zero_options("\"cpu_offload\": true").offload_optimizer.device, OffloadDevice::cpu);
  EXPECT_EQ(zero_options("\"cpu_offload\": false").offload_optimizer.device, OffloadDevice::none);
  EXPECT_EQ(zero_options("\"cpu_offload_param\": true").offload_param.device, OffloadDevice::cpu);
  expect_refused(R"({"zero_optimization": {"cpu_offload": true, "offload_optimizer": {"device": "cpu"}}})",
                 "zero_optimization.cpu_offload", "is the old name of offload_optimizer");
  const TrainingConfig old = read(R"({"zero_optimization": true, "allgather_size": 7e6})");
  EXPECT_EQ(old.stage->value, 1);
  EXPECT_EQ(old.deepspeed->allgather_bucket_size, 7'000'000U);
  EXPECT_EQ(read(R"({"zero_optimization": false})").stage->value, 0);
  EXPECT_EQ(read(R"({"bfloat16": {"enabled": true}})").precision->value, "bf16-mixed");
  EXPECT_EQ(read(R"({"bf16": {"enabled": false}, "bfloat16": {"enabled": true}})").precision->value, "fp32");
}

TEST(DsConfig, UnknownKeysAreErrorsThatNameTheNearest) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"zero_optimization": {"reduce_bucket_siz": 1}})", "zero_optimization.reduce_bucket_siz"},
      {R"({"zero_optimization": {"offload_param": {"pin_memry": true}}})", "zero_optimization.offload_param.pin_memry"},
      {R"({"zero_optimization": {"offload_optimizer": {"pin": 1}}})", "zero_optimization.offload_optimizer.pin"},
      {R"({"fp16": {"enable": true}})", "fp16.enable"},
      {R"({"bf16": {"enable": true}})", "bf16.enable"},
      {R"({"activation_checkpointing": {"partition_activation": true}})",
       "activation_checkpointing.partition_activation"},
      {R"({"data_types": {"grad_acum_dtype": "fp32"}})", "data_types.grad_acum_dtype"}};
  for (const auto& [text, key] : cases) expect_refused(text, key, "did you mean ");
  expect_refused(R"({"zero_optimization": {"stage_3_max_live_parameters": 1}})",
                 "zero_optimization.stage_3_max_live_parameters", "did you mean stage3_max_live_parameters?");
  const TrainingConfig config = read(R"({"zero_optimisation": {"stage": 3}, "my_own_key": 1, "aio": {"block": 1}})");
  EXPECT_EQ(config.notes,
            (std::vector<std::string>{
                "ds.json: zero_optimisation is not a key that DeepSpeed knows; did you mean zero_optimization?",
                "ds.json: my_own_key is not a key that DeepSpeed knows",
                "ds.json: aio.block is not a key that DeepSpeed knows"}));
}

TEST(DsConfig, OneLineSaysFileKeyAndWhatWasExpected) {
  expect_refused(R"({"zero_optimization": {"stage": 4}})", "zero_optimization.stage", "a stage from 0 to 3, found 4");
  expect_refused(R"({"zero_optimization": []})", "zero_optimization", "expected true or false, found an array");
  expect_refused(R"({"zero_optimization": {"offload_param": {"device": "disk"}}})",
                 "zero_optimization.offload_param.device", "expected \"none\", \"cpu\" or \"nvme\", found \"disk\"");
  expect_refused(R"({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}})",
                 "zero_optimization.offload_param.nvme_path", "expected a folder");
  expect_refused(R"({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}})",
                 "zero_optimization.offload_optimizer.ratio", "at stage 3 only, found stage 2");
  expect_refused(R"({"fp16": {"enabled": true}, "bf16": {"enabled": true}})", "bf16.enabled", "exclude each other");
  expect_refused(R"({"bf16": {"enabled": true}, "data_types": {"param_dtype": "fp16"}})", "data_types.param_dtype",
                 "expected \"bf16\"");
  expect_refused(R"({"data_types": {"grad_accum_dtype": "int8"}})", "data_types.grad_accum_dtype", "found \"int8\"");
  expect_refused(R"({"train_batch_size": 0})", "train_batch_size", "expected a positive integer, found 0");
  expect_refused(R"({"bf16": {"enabled": true, "bf16_optimizer_states": true}})", "bf16.bf16_optimizer_states",
                 "needs bf16_master_weights_and_grads");
  expect_refused(R"({"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}})",
                 "bf16.bf16_master_weights_and_grads", "needs stage 1, 2 or 3");
  expect_refused(R"({"amp": {"enabled": true}, "zero_optimization": {"stage": 1}})", "amp.enabled", "needs stage 0");
  expect_refused(R"({"zero_optimization": {"ignore_unused_parameters": "maybe"}})",
                 "zero_optimization.ignore_unused_parameters", "expected true or false");
  expect_refused("[]", "", "expected an object");
}

TEST(DsConfig, OffloadIsReadWhole) {
  const DeepSpeedOptions options = zero_options(R"(
      "offload_optimizer": {"device": "nvme", "nvme_path": "/a", "buffer_count": 12, "pin_memory": false, "ratio": 0.25,
                            "pipeline_read": true, "pipeline_write": true, "fast_init": true},
      "offload_param": {"device": "nvme", "nvme_path": "/b", "buffer_count": 6, "buffer_size": 2e8, "max_in_cpu": 0,
                        "pin_memory": false})");
  const DeepSpeedOptions::OffloadOptimizer optimizer{.device = OffloadDevice::nvme,
                                                     .buffer_count = 12,
                                                     .pin_memory = false,
                                                     .ratio = 0.25,
                                                     .pipeline_read = true,
                                                     .pipeline_write = true,
                                                     .nvme_path = "/a"};
  EXPECT_EQ(options.offload_optimizer, optimizer);
  const DeepSpeedOptions::OffloadParam param{.device = OffloadDevice::nvme,
                                             .buffer_count = 6,
                                             .buffer_size = 200'000'000,
                                             .max_in_cpu = 0,
                                             .pin_memory = false,
                                             .nvme_path = "/b"};
  EXPECT_EQ(options.offload_param, param);
}

TEST(DsConfig, PrecisionsAndTheirOverrides) {
  const auto precision = [](const std::string& members) {
    return read(R"({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, )" + members + "}");
  };
  EXPECT_EQ(precision(R"("fp16": {"enabled": true})").precision->value, "fp16-mixed");
  EXPECT_EQ(precision(R"("bf16": {"enabled": true})").precision->value, "bf16-mixed");
  EXPECT_EQ(precision(R"("torch_autocast": {"enabled": true, "dtype": "bfloat16"})").precision->value, "amp-bf16");
  EXPECT_EQ(precision(R"("torch_autocast": {"enabled": true})").precision->value, "amp-fp16");
  EXPECT_EQ(read(R"({"amp": {"enabled": true, "opt_level": "O1"}})").precision->value, "amp-fp16");
  EXPECT_FALSE(precision(R"("fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"})").precision);
  EXPECT_EQ(precision(R"("fp16": {"enabled": true}, "bf16": {"enabled": "auto"})").precision->value, "fp16-mixed");

  const TrainingConfig megatron = precision(R"("bf16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp32"})");
  EXPECT_EQ(megatron.precision->value, "bf16-mixed-fp32grad");
  EXPECT_EQ(megatron.deepspeed->grad_accum_dtype, DType::f32);

  const TrainingConfig pure =
      precision(R"("bf16": {"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true})");
  EXPECT_EQ(pure.precision->value, "bf16");
  const TrainingConfig masters = precision(R"("bf16": {"enabled": true, "bf16_master_weights_and_grads": true})");
  EXPECT_EQ(masters.precision->value, "bf16-fp32state");
  const TrainingConfig half = precision(R"("fp16": {"enabled": true, "fp16_master_weights_and_grads": true},
                   "optimizer": {"type": "Adam", "params": {"fp32_optimizer_states": false}})");
  EXPECT_EQ(half.dtypes.master->value, DType::f16);
  EXPECT_EQ(half.dtypes.moments->value, DType::f16);
}

TEST(DsConfig, Optimizers) {
  const std::pair<const char*, std::optional<OptimizerKind>> cases[] = {
      {R"({"type": "AdamW"})", OptimizerKind::adamw},
      {R"({"type": "adam", "params": {"lr": 1e-3}})", OptimizerKind::adamw},
      {R"({"type": "Adam", "params": {"adam_w_mode": false}})", OptimizerKind::adam},
      {R"({"type": "Lion"})", OptimizerKind::lion},
      {R"({"type": "Muon"})", OptimizerKind::muon},
      {R"({"type": "SGD"})", OptimizerKind::sgd},
      {R"({"type": "SGD", "params": {"momentum": 0.9}})", OptimizerKind::sgd_momentum},
      {R"({"type": "Lamb"})", OptimizerKind::adam},
      {R"({"type": "Adagrad"})", OptimizerKind::sgd_momentum},
      {R"({"type": "OneBitAdam"})", std::nullopt},
      {R"({"params": {}})", std::nullopt}};
  for (const auto& [text, kind] : cases) {
    const Saying<OptimizerKind> optimizer = read(fmt::format(R"({{"optimizer": {}}})", text)).optimizer;
    EXPECT_EQ(optimizer ? std::optional(optimizer->value) : std::nullopt, kind) << text;
  }
}

TEST(DsConfig, ParallelismThatTheFileSays) {
  const TrainingConfig config = read(R"({"sequence_parallel_size": 4, "data_parallel_size": 2,
      "tensor_parallel": {"autotp_size": 8}, "expert_parallel": {"enabled": true, "autoep_size": 2}})");
  EXPECT_EQ(config.context->value, 4U);
  EXPECT_EQ(config.world_size->value, 8U);
  EXPECT_EQ(config.tensor->value, 8U);
  EXPECT_EQ(config.expert->value, 2U);
}

TEST(DsConfig, TheFilesThatPeopleUse) {
  const TrainingConfig zero2 = read_data("zero2.json");
  EXPECT_EQ(zero2.stage->value, 2);
  EXPECT_EQ(zero2.deepspeed->reduce_bucket_size, 200'000'000U);
  EXPECT_EQ(zero2.deepspeed->overlap_comm, true);
  EXPECT_FALSE(zero2.precision || zero2.micro_batch || zero2.global_batch);

  const TrainingConfig zero3 = read_data("zero3.json");
  EXPECT_EQ(zero3.stage->value, 3);
  EXPECT_EQ(zero3.precision->value, "bf16-mixed");
  EXPECT_EQ(zero3.deepspeed->stage3_prefetch_bucket_size, 15'099'494U);
  EXPECT_EQ(resolve_batch(zero3, 8), (Batch{2, 4}));

  const TrainingConfig offload = read_data("zero3_offload.json");
  EXPECT_EQ(offload.deepspeed->offload_optimizer.device, OffloadDevice::cpu);
  EXPECT_EQ(offload.deepspeed->offload_param.device, OffloadDevice::cpu);
  EXPECT_EQ(offload.deepspeed->reduce_bucket_size, DeepSpeedOptions{}.reduce_bucket_size);
  EXPECT_EQ(offload.optimizer->value, OptimizerKind::adamw);
}

// runtime/config.py, _set_batch_related_parameters and _batch_assertion.
TEST(TrainingConfigBatch, FollowsDeepSpeedsArithmetic) {
  const auto batch = [](const std::string& members, std::uint64_t ranks) {
    return resolve_batch(read("{" + members + "}"), ranks);
  };
  EXPECT_EQ(batch("", 8), (Batch{1, 1}));
  EXPECT_EQ(batch(R"("train_batch_size": 64)", 8), (Batch{8, 1}));
  EXPECT_EQ(batch(R"("train_micro_batch_size_per_gpu": 4)", 8), (Batch{4, 1}));
  EXPECT_EQ(batch(R"("gradient_accumulation_steps": 4)", 8), (Batch{1, 4}));
  EXPECT_EQ(batch(R"("train_batch_size": 64, "train_micro_batch_size_per_gpu": 2)", 8), (Batch{2, 4}));
  EXPECT_EQ(batch(R"("train_batch_size": 64, "gradient_accumulation_steps": 2)", 8), (Batch{4, 2}));
  EXPECT_EQ(batch(R"("train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2)", 8), (Batch{3, 2}));
  const std::pair<const char*, const char*> refused[] = {
      {R"("train_batch_size": 60)", "7 x 1 x 8 = 56, found 60"},
      {R"("train_batch_size": 4)", "0 x 1 x 8 = 0, found 4"},
      {R"("train_batch_size": 64, "train_micro_batch_size_per_gpu": 5)", "5 x 1 x 8 = 40, found 64"},
      {R"("train_batch_size": 64, "train_micro_batch_size_per_gpu": 16)", "16 x 0 x 8 = 0, found 64"},
      {R"("train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2)",
       "2 x 2 x 8 = 32, found 64"}};
  for (const auto& [members, problem] : refused) {
    expect_config_error([&, text = members] { batch(text, 8); }, "ds.json", "train_batch_size", problem);
  }
}

// A set-up as memcalc has it once flags are read.
struct TrainingRun {
  Setup setup;
  DeepSpeedOptions options;
  std::uint64_t micro_batch = 1;
};

template <typename T>
T any_of(std::initializer_list<T> values) {
  return *rc::gen::elementOf(std::vector<T>(values));
}

std::uint64_t any_count(std::uint64_t least) {
  return *rc::gen::inRange<std::uint64_t>(least, 2'000'000'000);
}

DeepSpeedOptions any_options(int stage) {
  DeepSpeedOptions options;
  options.contiguous_gradients = any_of({true, false});
  options.reduce_scatter = any_of({true, false});
  options.use_multi_rank_bucket_allreduce = any_of({true, false});
  options.reduce_bucket_size = any_count(0);
  options.allgather_bucket_size = any_count(0);
  options.overlap_comm = any_of<std::optional<bool>>({std::nullopt, true, false});
  options.sub_group_size = any_count(1);
  options.stage3_prefetch_bucket_size = any_count(0);
  options.stage3_param_persistence_threshold = any_count(0);
  options.stage3_max_live_parameters = any_count(0);
  options.stage3_max_reuse_distance = any_count(0);
  options.communication_data_type = any_of<std::optional<DType>>({std::nullopt, DType::f32, DType::bf16});
  options.seq_parallel_communication_data_type = any_of({DType::f32, DType::bf16});
  options.aio.intra_op_parallelism = any_of<std::uint64_t>({1, 4});
  if (stage == 3) {
    options.stage3_allgather_sequential = any_of({true, false});
    options.zero_hpz_partition_size = any_of<std::uint64_t>({1, 2});
    options.mics_shard_size = any_of<std::int64_t>({-1, 4});
    options.zero_quantized_weights = any_of({true, false});
    options.zero_quantized_nontrainable_weights = any_of({true, false});
    options.zero_quantized_gradients = any_of({true, false});
    options.zeropp_loco = any_of({true, false});
  }
  return options;
}

void choose_offload(int stage, DeepSpeedOptions& options) {
  if (stage == 0) return;
  DeepSpeedOptions::OffloadOptimizer& optimizer = options.offload_optimizer;
  optimizer.device = any_of({OffloadDevice::none, OffloadDevice::cpu});
  optimizer.pin_memory = any_of({true, false});
  if (stage < 3) return;
  if (optimizer.device == OffloadDevice::cpu) optimizer.ratio = any_of({1.0, 0.5, 0.3});
  if (any_of({true, false})) {
    optimizer = {.device = OffloadDevice::nvme,
                 .buffer_count = any_count(0),
                 .pin_memory = true,
                 .ratio = 1.0,
                 .pipeline_read = any_of({true, false}),
                 .pipeline_write = any_of({true, false}),
                 .nvme_path = "/nvme/\"a\" \\ b"};
  }
  options.offload_param = {.device = any_of({OffloadDevice::none, OffloadDevice::cpu, OffloadDevice::nvme}),
                           .buffer_count = any_count(0),
                           .buffer_size = any_count(0),
                           .max_in_cpu = any_count(0),
                           .pin_memory = any_of({true, false}),
                           .nvme_path = "/nvme"};
}

TrainingRun any_run() {
  TrainingRun run;
  run.setup.stage = *rc::gen::inRange(0, 4);
  run.setup.world_size = 8;
  run.setup.parallel.context = any_of<std::uint64_t>({1, 2});
  run.setup.accumulation = *rc::gen::inRange<std::uint64_t>(1, 5);
  run.setup.optimizer = any_of({OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::lion, OptimizerKind::sgd,
                                OptimizerKind::sgd_momentum});
  run.micro_batch = *rc::gen::inRange<std::uint64_t>(1, 9);
  run.options = any_options(run.setup.stage);
  choose_offload(run.setup.stage, run.options);
  run.setup.policy = policy_named(
      any_of<const char*>({"fp32", "fp16-mixed", "bf16-mixed", "bf16-mixed-fp32grad", "amp-bf16", "amp-fp16"}));
  if (run.setup.stage > 0) {
    const auto low = any_of<const char*>({"", "bf16", "bf16-fp32state"});
    if (*low != '\0') run.setup.policy = policy_named(low);
    if (run.setup.policy.parameter != DType::bf16) {
      run.options.grad_accum_dtype = any_of<std::optional<DType>>({std::nullopt, DType::f32});
    }
  }
  run.options.bf16_immediate_grad_update = run.setup.policy.parameter == DType::bf16 && any_of({true, false});
  settle_deepspeed(run.setup, run.options);
  return run;
}

// As memcalc applies a file, for a launcher that says the ranks.
TrainingRun run_of(const TrainingConfig& config, std::uint64_t world) {
  TrainingRun run;
  run.setup.world_size = world;
  run.setup.stage = config.stage->value;
  if (config.context) run.setup.parallel.context = config.context->value;
  run.setup.optimizer = config.optimizer->value;
  run.setup.policy = policy_named(config.precision->value);
  if (config.dtypes.master) run.setup.policy.master = config.dtypes.master->value;
  if (config.dtypes.moments) {
    run.setup.policy.first_moment = run.setup.policy.second_moment = config.dtypes.moments->value;
  }
  const Batch batch = resolve_batch(config, data_parallel(run.setup));
  run.micro_batch = batch.micro;
  run.setup.accumulation = batch.accumulation;
  run.options = config.deepspeed.value();
  settle_deepspeed(run.setup, run.options);
  return run;
}

TEST(DsConfigWriter, WhatIsWrittenReadsBackTheSame) {
  check_property(500, [] {
    const TrainingRun run = any_run();
    const std::string text = ds_config_text(run.setup, run.options, run.micro_batch);
    const TrainingConfig config = ds_config(text, "written.json");
    const TrainingRun back = run_of(config, run.setup.world_size);
    RC_ASSERT(back.options == run.options);
    RC_ASSERT(back.setup == run.setup);
    RC_ASSERT(back.micro_batch == run.micro_batch);
    RC_ASSERT(std::none_of(config.notes.begin(), config.notes.end(),
                           [](const std::string& note) { return note.find("is not a key") != std::string::npos; }));
    RC_ASSERT(ds_config_text(back.setup, back.options, back.micro_batch) == text);
  });
}

TEST(DsConfigWriter, RefusesWhatTheFormatCannotSay) {
  const auto refused = [](const std::string& flag, const std::string& problem, auto change) {
    TrainingRun run;
    run.setup.stage = 2;
    run.setup.world_size = 8;
    change(run);
    expect_config_error([&] { ds_config_text(run.setup, run.options, 1); }, flag, "", problem);
  };
  refused("--replicate", "that groups replicate", [](TrainingRun& run) { run.setup.replicate = 2; });
  refused("--pp", "pipeline stages", [](TrainingRun& run) { run.setup.parallel.pipeline = 2; });
  refused("--ema", "moving average", [](TrainingRun& run) { run.setup.ema = true; });
  refused("--optimizer", "adam8bit", [](TrainingRun& run) { run.setup.optimizer = OptimizerKind::adam8bit; });
  refused("--precision", "computation in fp8", [](TrainingRun& run) { run.setup.policy = policy_named("fp8-mixed"); });
  refused("--master-dtype", "masters in fp16 with parameters in bf16",
          [](TrainingRun& run) { run.setup.policy.master = DType::f16; });
  refused("--moment-dtype", "moments in bf16",
          [](TrainingRun& run) { run.setup.policy.first_moment = run.setup.policy.second_moment = DType::bf16; });
  refused("--zero", "stage 0", [](TrainingRun& run) {
    run.setup.stage = 0;
    run.setup.policy = policy_named("bf16");
  });
  refused("--offload", "names the folder",
          [](TrainingRun& run) { run.options.offload_optimizer.device = OffloadDevice::nvme; });
}

}  // namespace
}  // namespace shardplan
