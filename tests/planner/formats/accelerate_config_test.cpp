#include "planner/formats/accelerate_config.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <fstream>

#include "planner/engines/deepspeed.h"
#include "tests/support/config_error.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

TrainingConfig read(const std::string& text) {
  return accelerate_config(text, "a.yaml");
}

template <typename T>
std::optional<T> value(const Saying<T>& said) {
  return said ? std::optional<T>(said->value) : std::nullopt;
}

bool has_note(const TrainingConfig& config, const std::string& part) {
  return std::any_of(config.notes.begin(), config.notes.end(),
                     [&](const std::string& note) { return note.find(part) != std::string::npos; });
}

TEST(AccelerateConfig, Fsdp2) {
  const TrainingConfig config = read(R"(
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
enable_cpu_affinity: false
fsdp_config:
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: true
  fsdp_reshard_after_forward: false
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_version: 2
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 2
num_processes: 16
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
)");
  EXPECT_EQ(value(config.engine), Engine::fsdp2);
  EXPECT_EQ(value(config.stage), 2);
  EXPECT_EQ(config.stage->key, "fsdp_config.fsdp_reshard_after_forward");
  EXPECT_EQ(value(config.precision), "bf16-mixed");
  EXPECT_EQ(value(config.recompute), Recompute::full);
  EXPECT_EQ(value(config.world_size), 16U);
  EXPECT_EQ(value(config.gpus_per_node), 8U);
  EXPECT_TRUE(config.fsdp2->offload);
  EXPECT_EQ(config.fsdp2->reshard_after_forward, false);
  EXPECT_TRUE(config.notes.empty());
}

TEST(AccelerateConfig, Fsdp1StrategiesByNameAndNumber) {
  struct Case {
    const char* said;
    int stage;
    bool in_node;
  };
  for (const Case& c : {Case{"FULL_SHARD", 3, false},
                        {"SHARD_GRAD_OP", 2, false},
                        {"HYBRID_SHARD", 3, true},
                        {"HYBRID_SHARD_ZERO2", 2, true},
                        {"1", 3, false},
                        {"5", 2, true},
                        {"'4'", 3, true},
                        {"full_shard", 3, false}}) {
    const TrainingConfig config =
        read(std::string("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: ") + c.said + "}\n");
    EXPECT_EQ(value(config.engine), Engine::fsdp2) << c.said;
    EXPECT_EQ(value(config.stage), c.stage) << c.said;
    EXPECT_EQ(config.shard_in_node.has_value(), c.in_node) << c.said;
    EXPECT_TRUE(has_note(config, "version 1"));
  }
  const TrainingConfig ddp =
      read("distributed_type: FSDP\nmixed_precision: bf16\nfsdp_config: {fsdp_sharding_strategy: NO_SHARD}\n");
  EXPECT_EQ(value(ddp.engine), Engine::paper);
  EXPECT_EQ(value(ddp.stage), 0);
  EXPECT_EQ(value(ddp.precision), "amp-bf16");
  EXPECT_EQ(value(read("distributed_type: FSDP\n").stage), 3);
}

TEST(AccelerateConfig, ReplicasAndOneProcess) {
  const TrainingConfig ddp = read("distributed_type: MULTI_GPU\nmixed_precision: fp16\nnum_processes: 4\n");
  EXPECT_EQ(value(ddp.stage), 0);
  EXPECT_EQ(value(ddp.precision), "amp-fp16");
  EXPECT_EQ(value(ddp.world_size), 4U);
  for (const char* no : {"NO", "'NO'"}) {
    const TrainingConfig one = read(std::string("distributed_type: ") + no + "\nmixed_precision: no\n");
    EXPECT_EQ(value(one.world_size), 1U) << no;
    EXPECT_EQ(value(one.precision), "fp32") << no;
  }
  EXPECT_FALSE(read("distributed_type: FSDP\nnum_processes: -1\n").world_size);
}

TEST(AccelerateConfig, ParallelismConfig) {
  const TrainingConfig config = read(R"(
distributed_type: FSDP
num_processes: 32
fsdp_config: {fsdp_version: 2}
parallelism_config:
  parallelism_config_dp_replicate_size: 2
  parallelism_config_dp_shard_size: 4
  tp_size: 2
  cp_size: 2
)");
  EXPECT_EQ(value(config.replicate), 2U);
  EXPECT_EQ(value(config.tensor), 2U);
  EXPECT_EQ(value(config.context), 2U);
  expect_config_error(
      [] { read("distributed_type: FSDP\nnum_processes: 8\nparallelism_config: {dp_shard_size: 4}\n"); }, "a.yaml",
      "parallelism_config.dp_shard_size", "is 4, but num_processes is 8");
}

TEST(AccelerateConfig, DeepSpeedInline) {
  const TrainingConfig config = read(R"(
distributed_type: DEEPSPEED
mixed_precision: bf16
num_processes: 8
deepspeed_config:
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: cpu
  offload_param_device: nvme
  offload_param_nvme_path: /nvme
  zero3_init_flag: true
  zero3_save_16bit_model: false
  zero_stage: 3
)");
  EXPECT_EQ(value(config.engine), Engine::deepspeed);
  EXPECT_EQ(value(config.stage), 3);
  EXPECT_EQ(config.stage->key, "deepspeed_config.zero_stage");
  EXPECT_EQ(value(config.accumulation), 4U);
  EXPECT_EQ(value(config.precision), "bf16-mixed");
  EXPECT_EQ(config.deepspeed->offload_optimizer.device, OffloadDevice::cpu);
  EXPECT_EQ(config.deepspeed->offload_param.device, OffloadDevice::nvme);
  EXPECT_EQ(config.deepspeed->offload_param.nvme_path, "/nvme");
  EXPECT_TRUE(config.deepspeed->zero_init);
  EXPECT_EQ(value(read("distributed_type: DEEPSPEED\n").stage), 2);
}

TEST(AccelerateConfig, DeepSpeedsOwnFileLiesBesideTheYaml) {
  const test_support::TemporaryFolder folder;
  const std::string yaml = folder.path() + "/a.yaml";
  std::ofstream(yaml) << "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 8\n"
                         "deepspeed_config: {deepspeed_config_file: ds.json, zero3_init_flag: false}\n";
  std::ofstream(folder.path() + "/ds.json")
      << R"({"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}})";
  const TrainingConfig config = accelerate_config_in_file(yaml);
  EXPECT_EQ(value(config.stage), 3);
  EXPECT_EQ(value(config.micro_batch), 2U);
  EXPECT_EQ(config.deepspeed->reduce_bucket_size, 1000U);
  EXPECT_FALSE(config.deepspeed->zero_init);
  EXPECT_EQ(value(config.precision), "bf16-mixed");
  EXPECT_EQ(value(config.world_size), 8U);
  std::ofstream(folder.path() + "/ds.json") << R"({"zero_optimization": {"stage": 5}, "train_batch_size": 8})";
  EXPECT_THROW(accelerate_config_in_file(yaml), ConfigError);
  std::ofstream(yaml) << "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: absent.json}\n";
  EXPECT_THROW(accelerate_config_in_file(yaml), IoError);
}

TEST(AccelerateConfig, Megatron) {
  const TrainingConfig config = read(R"(
distributed_type: MEGATRON_LM
mixed_precision: bf16
num_processes: 16
megatron_lm_config:
  megatron_lm_gradient_clipping: 1.0
  megatron_lm_num_micro_batches: 4
  megatron_lm_pp_degree: 2
  megatron_lm_recompute_activations: true
  megatron_lm_sequence_parallelism: true
  megatron_lm_tp_degree: 4
  megatron_lm_use_distributed_optimizer: true
)");
  EXPECT_EQ(value(config.engine), Engine::megatron);
  EXPECT_EQ(value(config.stage), 1);
  EXPECT_EQ(value(config.tensor), 4U);
  EXPECT_EQ(value(config.pipeline), 2U);
  EXPECT_EQ(value(config.accumulation), 4U);
  EXPECT_EQ(value(config.sequence_parallel), true);
  EXPECT_EQ(value(config.precision), "bf16-mixed-fp32grad");
  EXPECT_EQ(config.megatron->use_distributed_optimizer, true);
  EXPECT_TRUE(has_note(config, "selective"));
}

TEST(AccelerateConfig, WhatIsWrongNamesFileAndKey) {
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {"distributed_type: FSDP\nfdsp_config: {}\n", "fdsp_config", "the nearest is fsdp_config"},
      {"num_processes: 8\n", "distributed_type", "one of NO, MULTI_GPU, FSDP"},
      {"distributed_type: XLA\n", "distributed_type", "found \"XLA\""},
      {"distributed_type: FSDP\nmixed_precision: int8\n", "mixed_precision", "one of no, fp16, bf16, fp8"},
      {"distributed_type: FSDP\nnum_processes: many\n", "num_processes", "expected an integer"},
      {"distributed_type: FSDP\nnum_processes: 7\nnum_machines: 2\n", "num_machines", "do not share out"},
      {"distributed_type: FSDP\nfsdp_config: {fsdp_version: 3}\n", "fsdp_config.fsdp_version", "1 or 2"},
      {"distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: SHARD}\n", "fsdp_config.fsdp_sharding_strategy",
       "FULL_SHARD"},
      {"distributed_type: FSDP\nfsdp_config: {fsdp_offload_params: 3}\n", "fsdp_config.fsdp_offload_params",
       "expected true or false, found 3"},
      {"distributed_type: FSDP\nfsdp_config: [1]\n", "fsdp_config", "expected a map"},
      {"distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}\n", "deepspeed_config.zero_stage", "0 to 3"},
      {"distributed_type: DEEPSPEED\ndeepspeed_config: {offload_param_device: gpu}\n",
       "deepspeed_config.offload_param_device", "none, cpu, nvme"},
      {"compute_environment: AMAZON_SAGEMAKER\ndistributed_type: NO\n", "compute_environment", "LOCAL_MACHINE"},
      {"[1, 2]\n", "", "expected a map"},
      {"", "", "expected a map"},
  };
  for (const auto& [text, key, problem] : cases) {
    SCOPED_TRACE(text);
    expect_config_error([&, text = text] { read(text); }, "a.yaml", key, problem);
  }
  EXPECT_TRUE(has_note(read("distributed_type: FSDP\nfsdp_config: {fsdp_ofload_params: true}\n"),
                       "fsdp_config.fsdp_ofload_params is not known and not used: the nearest is fsdp_offload_params"));
}

// What accelerate says of a set-up, from what a file says.
struct SetUp {
  Engine engine = Engine::fsdp2;
  shardplan::Setup setup;
  EngineOptions options;
};

SetUp any_set_up() {
  SetUp s;
  s.engine = *rc::gen::element(Engine::fsdp2, Engine::deepspeed, Engine::megatron, Engine::paper);
  const bool fsdp = s.engine == Engine::fsdp2;
  Parallelism& p = s.setup.parallel;
  if (fsdp || s.engine == Engine::megatron) {
    p.tensor = *rc::gen::element<std::uint64_t>(1, 2, 4);
    p.context = *rc::gen::element<std::uint64_t>(1, 2);
  }
  const std::uint64_t shard = *rc::gen::inRange<std::uint64_t>(1, 9);
  s.setup.replicate = fsdp ? *rc::gen::element<std::uint64_t>(1, 2, 3) : 1;
  s.setup.world_size = shard * p.context * s.setup.replicate;
  if (s.engine != Engine::paper) s.setup.recompute = *rc::gen::element(Recompute::none, Recompute::full);
  if (s.engine == Engine::deepspeed) s.setup.recompute = Recompute::none;
  const char* half = *rc::gen::element("bf16", "fp16");
  const bool bf16 = std::string(half) == "bf16";
  const bool full = *rc::gen::arbitrary<bool>();
  if (s.engine == Engine::paper) {
    s.setup.policy = policy_named(full ? "fp32" : bf16 ? "amp-bf16" : "amp-fp16");
  } else if (s.engine == Engine::megatron) {
    s.setup.policy = policy_named(full ? "fp32" : bf16 ? "bf16-mixed-fp32grad" : "fp16-mixed");
    s.options.megatron.main_grads_dtype = s.setup.policy.gradient;
    s.setup.stage = *rc::gen::element<int>(0, 1);
    s.options.megatron.use_distributed_optimizer = s.setup.stage == 1;
    p.pipeline = *rc::gen::element<std::uint64_t>(1, 2, 3);
    p.sequence_parallel = p.tensor > 1 && *rc::gen::arbitrary<bool>();
    s.setup.accumulation = *rc::gen::inRange<std::uint64_t>(1, 9);
  } else {
    s.setup.policy = policy_named(full ? "fp32" : bf16 ? "bf16-mixed" : "fp16-mixed");
  }
  if (fsdp) {
    s.setup.stage = *rc::gen::element<int>(2, 3);
    s.options.fsdp2.reshard_after_forward = s.setup.stage == 3;
    s.options.fsdp2.offload = *rc::gen::arbitrary<bool>();
  }
  if (s.engine == Engine::deepspeed) {
    s.setup.stage = *rc::gen::inRange(0, 4);
    s.setup.accumulation = *rc::gen::inRange<std::uint64_t>(1, 9);
    if (s.setup.stage == 3) {
      s.options.deepspeed.offload_param.device = *rc::gen::element(OffloadDevice::none, OffloadDevice::cpu);
      s.options.deepspeed.zero_init = *rc::gen::arbitrary<bool>();
    }
    if (s.setup.stage > 0) {
      s.options.deepspeed.offload_optimizer.device = *rc::gen::element(OffloadDevice::none, OffloadDevice::cpu);
    }
  }
  if (s.engine == Engine::deepspeed) settle_deepspeed(s.setup, s.options.deepspeed);
  return s;
}

RC_GTEST_PROP(AccelerateConfigProperty, WhatIsWrittenReadsBack, ()) {
  const SetUp s = any_set_up();
  const std::string text = accelerate_config_text(s.engine, s.setup, s.options);
  const TrainingConfig config = read(text);
  const auto count = [](const Saying<std::uint64_t>& said) { return said ? said->value : 1; };
  RC_ASSERT(config.engine->value == s.engine);
  RC_ASSERT(config.stage->value == s.setup.stage);
  RC_ASSERT(config.precision->value == s.setup.policy.name);
  RC_ASSERT(count(config.world_size) == total_ranks(s.setup));
  RC_ASSERT(count(config.replicate) == s.setup.replicate);
  RC_ASSERT(count(config.tensor) == s.setup.parallel.tensor);
  RC_ASSERT(count(config.context) == s.setup.parallel.context);
  RC_ASSERT(count(config.pipeline) == s.setup.parallel.pipeline);
  RC_ASSERT(count(config.accumulation) == s.setup.accumulation);
  RC_ASSERT((config.sequence_parallel && config.sequence_parallel->value) == s.setup.parallel.sequence_parallel);
  RC_ASSERT((config.recompute ? config.recompute->value : Recompute::none) == s.setup.recompute);
  if (s.engine == Engine::fsdp2) RC_ASSERT(config.fsdp2 == s.options.fsdp2);
  if (s.engine == Engine::megatron) RC_ASSERT(config.megatron == s.options.megatron);
  if (s.engine == Engine::deepspeed) RC_ASSERT(config.deepspeed == s.options.deepspeed);
}

TEST(AccelerateConfigText, WhatTheFileCannotSayIsRefused) {
  shardplan::Setup setup;
  setup.stage = 3;
  setup.world_size = 8;
  EngineOptions options;
  const auto refuse = [&](Engine engine, const shardplan::Setup& refused, const EngineOptions& with, const char* flag,
                          const char* problem) {
    expect_config_error([&] { accelerate_config_text(engine, refused, with); }, flag, "", problem);
  };
  shardplan::Setup other = setup;
  other.policy = policy_named("bf16-mixed-fp32grad");
  refuse(Engine::fsdp2, other, options, "--precision", "expected fp32, fp16-mixed or bf16-mixed");
  other = setup;
  other.parallel.pipeline = 2;
  refuse(Engine::fsdp2, other, options, "--pp", "pipeline stages");
  refuse(Engine::shardplan, setup, options, "--engine", "expected fsdp2, deepspeed, megatron or paper");
  refuse(Engine::paper, setup, options, "--zero", "expected --engine fsdp2");
  other = setup;
  other.ema = true;
  refuse(Engine::deepspeed, other, options, "--ema", "moving average");
  EngineOptions buckets;
  buckets.deepspeed.reduce_bucket_size = 1000;
  refuse(Engine::deepspeed, setup, buckets, "--export", "expected --export deepspeed");
}

}  // namespace
}  // namespace shardplan
