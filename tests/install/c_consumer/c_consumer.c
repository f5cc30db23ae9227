/* A C99 program outside the project: two ranks, as threads, train y = tanh(x W + b) v on exclusive or at each ZeRO
 * stage. A stage changes where bytes live, never what they are: the parameters must have the same bits at all four. */
#include <math.h>
#include <pthread.h>
#include <shardplan.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 2, INPUTS = 2, HIDDEN = 8, SAMPLES = 2, STEPS = 400 };

typedef struct rank_state {
  pthread_t thread;
  int rank;
  const shardplan_plan* plan;
  shardplan_communicator* world;
  float first_loss, last_loss;
  uint64_t digest;
} rank_state;

/* Every function of the library returns a status, and tells more in the error. */
static void check(shardplan_status status, const shardplan_error* error) {
  if (status == SHARDPLAN_OK) return;
  fprintf(stderr, "%s: %s\n", shardplan_status_name(status), error->message);
  exit(1);
}

/* The same function of (tensor, element) on every rank. */
static int initial_values(void* user, const char* name, uint64_t tensor, uint64_t first, float* values, size_t count) {
  size_t i;
  (void)user;
  (void)name;
  for (i = 0; i < count; ++i) values[i] = (float)sin((double)(1000 * tensor + first + i + 1));
  return 0;
}

static int add_to_digest(void* user, const char* name, uint64_t tensor, const float* values, size_t count) {
  uint64_t* digest = user;
  const unsigned char* bytes = (const unsigned char*)values;
  size_t i;
  (void)name;
  (void)tensor;
  for (i = 0; i < count * sizeof *values; ++i) *digest = (*digest ^ bytes[i]) * UINT64_C(1099511628211);
  return 0;
}

/* One micro-batch: this rank's two of the four rows of the truth table. Units are entered and left, forward and then
 * backward; in between their parameters, and in the backward their gradients, are where the views say. */
static float train(shardplan_optimizer* optimizer, int rank, shardplan_error* error) {
  float hidden[SAMPLES][HIDDEN], d_hidden[SAMPLES][HIDDEN], d_output[SAMPLES];
  float x[SAMPLES][INPUTS], loss = 0;
  shardplan_unit_views views;
  const float *w, *b;
  float *dw, *db;
  int s, h, i;
  for (s = 0; s < SAMPLES; ++s) {
    x[s][0] = (float)rank;
    x[s][1] = (float)s;
  }
  check(shardplan_optimizer_begin(optimizer, SHARDPLAN_LAST_MICRO_BATCH, error), error);
  check(shardplan_optimizer_enter(optimizer, 0, SHARDPLAN_FORWARD, &views, error), error);
  w = views.parameters[0].data;
  b = views.parameters[1].data;
  for (s = 0; s < SAMPLES; ++s) {
    for (h = 0; h < HIDDEN; ++h) {
      float sum = b[h];
      for (i = 0; i < INPUTS; ++i) sum += x[s][i] * w[h * INPUTS + i];
      hidden[s][h] = tanhf(sum);
    }
  }
  check(shardplan_optimizer_leave(optimizer, 0, error), error);

  check(shardplan_optimizer_enter(optimizer, 1, SHARDPLAN_FORWARD, &views, error), error);
  w = views.parameters[0].data;
  for (s = 0; s < SAMPLES; ++s) {
    float y = 0;
    for (h = 0; h < HIDDEN; ++h) y += hidden[s][h] * w[h];
    d_output[s] = 2 * (y - (float)(rank ^ s)) / SAMPLES;
    loss += (y - (float)(rank ^ s)) * (y - (float)(rank ^ s)) / SAMPLES;
  }
  check(shardplan_optimizer_leave(optimizer, 1, error), error);

  check(shardplan_optimizer_enter(optimizer, 1, SHARDPLAN_BACKWARD, &views, error), error);
  w = views.parameters[0].data;
  dw = views.gradients[0].data;
  for (s = 0; s < SAMPLES; ++s) {
    for (h = 0; h < HIDDEN; ++h) {
      dw[h] += d_output[s] * hidden[s][h];
      d_hidden[s][h] = d_output[s] * w[h] * (1 - hidden[s][h] * hidden[s][h]);
    }
  }
  check(shardplan_optimizer_leave(optimizer, 1, error), error);

  check(shardplan_optimizer_enter(optimizer, 0, SHARDPLAN_BACKWARD, &views, error), error);
  dw = views.gradients[0].data;
  db = views.gradients[1].data;
  for (s = 0; s < SAMPLES; ++s) {
    for (h = 0; h < HIDDEN; ++h) {
      for (i = 0; i < INPUTS; ++i) dw[h * INPUTS + i] += d_hidden[s][h] * x[s][i];
      db[h] += d_hidden[s][h];
    }
  }
  check(shardplan_optimizer_leave(optimizer, 0, error), error);
  return loss;
}

static void* run_rank(void* argument) {
  rank_state* state = argument;
  shardplan_optimizer* optimizer;
  shardplan_error error;
  int step;
  check(shardplan_optimizer_create(state->plan, "cpu", state->world, initial_values, NULL, &optimizer, &error), &error);
  for (step = 0; step < STEPS; ++step) {
    state->last_loss = train(optimizer, state->rank, &error);
    if (step == 0) state->first_loss = state->last_loss;
    check(shardplan_optimizer_step(optimizer, NULL, &error), &error);
  }
  state->digest = UINT64_C(14695981039346656037);
  check(shardplan_optimizer_visit_parameters(optimizer, add_to_digest, &state->digest, &error), &error);
  shardplan_optimizer_free(optimizer);
  return NULL;
}

static uint64_t run_stage(const shardplan_catalog* catalog, int stage) {
  shardplan_communicator* worlds[RANKS];
  rank_state ranks[RANKS];
  shardplan_plan_facts facts;
  shardplan_plan* plan;
  shardplan_error error;
  char options[160];
  int r;
  sprintf(options,
          "{\"world_size\": %d, \"zero_stage\": %d, \"precision\": \"fp32\", \"learning_rate\": 0.05, "
          "\"weight_decay\": 0}",
          RANKS, stage);
  check(shardplan_plan_create(catalog, options, &plan, &error), &error);
  facts.struct_size = sizeof facts;
  check(shardplan_plan_get_facts(plan, &facts, &error), &error);
  check(shardplan_communicators_create_local(RANKS, 20000, worlds, &error), &error);
  for (r = 0; r < RANKS; ++r) {
    ranks[r].rank = r;
    ranks[r].plan = plan;
    ranks[r].world = worlds[r];
    if (pthread_create(&ranks[r].thread, NULL, run_rank, &ranks[r]) != 0) exit(1);
  }
  for (r = 0; r < RANKS; ++r) {
    pthread_join(ranks[r].thread, NULL);
    shardplan_communicator_free(worlds[r]);
    if (ranks[r].digest != ranks[0].digest || !(ranks[r].last_loss < ranks[r].first_loss / 100)) {
      fprintf(stderr, "rank %d: loss %g to %g\n", r, (double)ranks[r].first_loss, (double)ranks[r].last_loss);
      exit(1);
    }
  }
  printf("stage %d: %llu bytes of arena, %llu sent per step, digest %016llx\n", stage,
         (unsigned long long)facts.arena_bytes, (unsigned long long)facts.sent_bytes_per_step,
         (unsigned long long)ranks[0].digest);
  shardplan_plan_free(plan);
  return ranks[0].digest;
}

int main(void) {
  const uint64_t w_shape[] = {HIDDEN, INPUTS}, b_shape[] = {HIDDEN}, v_shape[] = {1, HIDDEN};
  shardplan_tensor tensors[3] = {
      {sizeof tensors[0], "hidden.weight", w_shape, 2, SHARDPLAN_UNSPECIFIED, 0, NULL, "hidden"},
      {sizeof tensors[0], "hidden.bias", b_shape, 1, SHARDPLAN_UNSPECIFIED, 0, NULL, "hidden"},
      {sizeof tensors[0], "output.weight", v_shape, 2, SHARDPLAN_UNSPECIFIED, 0, NULL, "output"}};
  shardplan_catalog* catalog;
  shardplan_error error;
  uint64_t first = 0;
  int stage;
  check(shardplan_catalog_from_tensors(tensors, 3, &catalog, &error), &error);
  for (stage = 0; stage < 4; ++stage) {
    const uint64_t digest = run_stage(catalog, stage);
    if (stage == 0) first = digest;
    if (digest != first) {
      fprintf(stderr, "stage %d has other bits than stage 0\n", stage);
      return 1;
    }
  }
  shardplan_catalog_free(catalog);
  return 0;
}
