/* shardplan: memory planner and ZeRO-style sharded optimizer. The C interface (C99) of libshardplan.so.0.
 *
 *   catalog   which tensors a model has
 *   plan      who keeps which byte and when: pure, the same on every rank
 *   optimizer carries out a plan on one rank, with the ranks of a communicator
 *
 * A program links with `pkg-config --cflags --libs shardplan-c`, or with CMake's find_package(shardplan COMPONENTS c)
 * and the target shardplan::c. What the words mean: docs/glossary.md.
 *
 * Errors. Every function that can fail returns a status, 0 for success, and fills in the shardplan_error that is its
 * last argument, which may be NULL. The caller owns it, so that an error needs no allocation, belongs to no thread, and
 * can be told before there is a handle. It is written only on failure, and so are output arguments only on success
 * (an output handle is set to NULL on failure). No function exits, aborts, logs or reads the environment.
 *
 * Ownership. shardplan_X_free() frees what shardplan_X_...() made; NULL is fine. Handles keep alive what they were made
 * from: they may be freed in any order. Strings and arrays that are passed in are read during the call; strings that
 * come out belong to their handle. A transport's functions and their `user` must outlive its communicator.
 *
 * Threads. Catalogs and plans never change: any thread may read one. A communicator and the optimizer on it belong to
 * one rank, which makes one call at a time, from any thread. Only shardplan_communicator_abort may come from another
 * thread at any time. A rank blocks only where it waits for its peers, never beyond its communicator's deadline.
 *
 * Callbacks run on the thread of the call that was given them, before it returns; a transport's, in whatever call of its
 * rank communicates. They return 0 to go on; with any other number the call fails with SHARDPLAN_CALLBACK_ERROR. They
 * must not call the handle that calls them, throw, or jump out.
 *
 * Units. Sizes are in bytes where the name says bytes, in elements where it says elements; times in seconds.
 *
 * Compatibility. Constants are int32_t, whatever a compiler's enums are. Structs that may grow begin with struct_size,
 * which the caller sets to sizeof(the struct): a newer library neither reads nor writes fields that the program did not
 * know of. Before version 1, a minor version may change anything; then the version of the symbols (SHARDPLAN_0.1)
 * changes with it, and a program that was linked to the old ones does not start, instead of doing something else.
 */
#ifndef SHARDPLAN_H
#define SHARDPLAN_H

/* NOLINTBEGIN: this is C. */
#include <stddef.h>
#include <stdint.h>

#define SHARDPLAN_VERSION_MAJOR 0
#define SHARDPLAN_VERSION_MINOR 1
#define SHARDPLAN_VERSION_PATCH 0
/* Increases with the version: 100 for 0.1.0. */
#define SHARDPLAN_VERSION (SHARDPLAN_VERSION_MAJOR * 10000 + SHARDPLAN_VERSION_MINOR * 100 + SHARDPLAN_VERSION_PATCH)

#if defined(__GNUC__)
#define SHARDPLAN_API __attribute__((visibility("default")))
#else
#define SHARDPLAN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* SHARDPLAN_VERSION of the library that runs. */
SHARDPLAN_API int shardplan_version(void);

/* ---------------------------------------------------------------------------------------------------------- errors */

typedef int32_t shardplan_status;
enum {
  SHARDPLAN_OK = 0,
  SHARDPLAN_CONFIG_ERROR = 1,        /* what was given is wrong: which file, key, and what was expected */
  SHARDPLAN_ARITHMETIC_OVERFLOW = 2, /* a size does not fit into 64 bits */
  SHARDPLAN_OUT_OF_MEMORY = 3,       /* requested_bytes, available_bytes */
  SHARDPLAN_COMMUNICATION_ERROR = 4, /* rank: the one to look at. The communicators are unusable from now on */
  SHARDPLAN_IO_ERROR = 5,            /* error_number: errno, 0 where a file ended early */
  SHARDPLAN_CHECKPOINT_ERROR = 6,    /* a checkpoint is not whole, or not ours */
  SHARDPLAN_CALLBACK_ERROR = 7,      /* callback_result: what a function of the caller's returned */
  SHARDPLAN_BUG = 8                  /* a call that does not match the plan, a NULL, or a bug of the library */
};

/* "config error"; "unknown status" for a number that is none. */
SHARDPLAN_API const char* shardplan_status_name(shardplan_status status);

typedef struct shardplan_error {
  shardplan_status status;
  int32_t rank;         /* -1 if not known */
  int32_t error_number; /* of SHARDPLAN_IO_ERROR */
  int32_t callback_result;
  uint64_t requested_bytes; /* of SHARDPLAN_OUT_OF_MEMORY, as the next one */
  uint64_t available_bytes;
  char message[2016]; /* UTF-8, ends with 0; cut off if longer */
} shardplan_error;

/* --------------------------------------------------------------------------------------------------------- catalogs */

typedef struct shardplan_catalog shardplan_catalog;

/* Element types. The optimizer trains in F32, BF16 and F16; the planner sizes all. */
typedef int32_t shardplan_dtype;
enum {
  SHARDPLAN_UNSPECIFIED = 0, /* what the plan's precision says */
  SHARDPLAN_BOOL = 1,
  SHARDPLAN_F4 = 2,
  SHARDPLAN_NF4 = 3,
  SHARDPLAN_F6_E2M3 = 4,
  SHARDPLAN_F6_E3M2 = 5,
  SHARDPLAN_U8 = 6,
  SHARDPLAN_I8 = 7,
  SHARDPLAN_F8_E5M2 = 8,
  SHARDPLAN_F8_E4M3 = 9,
  SHARDPLAN_F8_E8M0 = 10,
  SHARDPLAN_F8_E4M3FNUZ = 11,
  SHARDPLAN_F8_E5M2FNUZ = 12,
  SHARDPLAN_I16 = 13,
  SHARDPLAN_U16 = 14,
  SHARDPLAN_F16 = 15,
  SHARDPLAN_BF16 = 16,
  SHARDPLAN_I32 = 17,
  SHARDPLAN_U32 = 18,
  SHARDPLAN_F32 = 19,
  SHARDPLAN_C64 = 20,
  SHARDPLAN_F64 = 21,
  SHARDPLAN_I64 = 22,
  SHARDPLAN_U64 = 23
};

typedef struct shardplan_tensor {
  size_t struct_size; /* the same in every tensor of an array */
  const char* name;   /* whole: "model.layers.0.mlp.up_proj.weight" */
  const uint64_t* shape;
  size_t rank;           /* dims in `shape`; 0 for a scalar */
  shardplan_dtype dtype; /* set where the model fixes it */
  int32_t frozen;        /* not 0: no gradient and no optimizer state */
  const char* tied_to;   /* NULL, or the name of an earlier tensor of the same shape whose elements these are */
  const char* unit;      /* NULL in all tensors (units follow from the names), or the name of the unit in all of them */
} shardplan_tensor;

/* From a list of tensors, in the order of the model: those of a unit follow each other, units in the order of their use
 * in the forward pass. */
SHARDPLAN_API shardplan_status shardplan_catalog_from_tensors(const shardplan_tensor* tensors, size_t count,
                                                              shardplan_catalog** catalog, shardplan_error* error);

/* From a preset's name, or the path of a config.json, a safetensors file, an index of such files, a tensor list, or a
 * folder that holds one. */
SHARDPLAN_API shardplan_status shardplan_catalog_from_model(const char* preset_or_path, shardplan_catalog** catalog,
                                                            shardplan_error* error);

SHARDPLAN_API void shardplan_catalog_free(shardplan_catalog* catalog);

/* Calls visit for every tensor in order. `unit` is the number that the optimizer calls the unit by, `tensor` the place
 * in the catalog's order. Strings and shape are valid until visit returns. */
typedef int (*shardplan_tensor_visitor)(void* user, uint64_t unit, uint64_t tensor, const shardplan_tensor* facts);
SHARDPLAN_API shardplan_status shardplan_catalog_visit(const shardplan_catalog* catalog, shardplan_tensor_visitor visit,
                                                       void* user, shardplan_error* error);

/* ------------------------------------------------------------------------------------------------------------ plans */

typedef struct shardplan_plan shardplan_plan;

/* `options` is a JSON object; NULL, "{}" and null as a value are the defaults. A key that is not known is an error that
 * names the nearest that are.
 *
 *   world_size (1), replicate (1): groups of ranks that replicate each other, zero_stage (0), prefetch (1): units,
 *   grad_accum (1): micro-batches per step, cadence: "step" or "micro_batch" (step at stages 0 and 1),
 *   recompute: "none" or "full" ("none"), transport: "direct" or "staged" ("direct"), reduction: "canonical" or "fast"
 *   ("canonical"), reduction_group: ranks that are summed first (the shard group)
 *   precision ("bf16-mixed"), and over it compute_dtype, param_dtype, grad_dtype, grad_accum_dtype, master_dtype,
 *   moment_dtype, wire_dtype
 *   optimizer ("adamw"), learning_rate (1e-3), beta1 (0.9), beta2 (0.999), eps (1e-8), weight_decay (0.01), and
 *   groups: [{"match": "*.bias", "weight_decay": 0}, ...]: each with the keys of this line where it differs; a
 *   tensor is of the first group whose glob matches its name; without groups, one has all tensors
 *   clip_norm (0: off), clip: "global" or "per_group" ("global")
 *   loss_scaling: "constant", "torch", "deepspeed", "megatron", or an object with rule, initial, growth, backoff,
 *   window, hysteresis, minimum ("constant", 1)
 *   ema (false), ema_decay (0.999): a moving average of the parameters
 *   offload: "optimizer=cpu", "optimizer=file@0.5:/mnt/nvme,gradients=file,parameters=cpu", ...: what lives in host memory, or
 *   in a file for each rank, one of all classes, in a folder ("."), offload_threads (4): that read and write it,
 *   offload_io: "pread", "io_uring" (each read and write in pieces at once): how
 *   freeze: ["model.embed*", ...]: globs of tensors to freeze
 */
SHARDPLAN_API shardplan_status shardplan_plan_create(const shardplan_catalog* catalog, const char* options,
                                                     shardplan_plan** plan, shardplan_error* error);
SHARDPLAN_API void shardplan_plan_free(shardplan_plan* plan);

/* Of one rank. */
typedef struct shardplan_plan_facts {
  size_t struct_size;
  char hash[40]; /* 32 hex digits: equal plans have equal hashes */
  uint64_t units;
  uint64_t tensors;
  uint64_t parameter_elements;
  uint64_t trainable_elements;
  /* What is resident between steps. */
  uint64_t parameter_bytes;
  uint64_t gradient_bytes;
  uint64_t optimizer_state_bytes;
  /* The largest sum of what is handed out at one moment, by class. */
  uint64_t peak_bytes;
  uint64_t peak_parameter_bytes;
  uint64_t peak_gathered_parameter_bytes;
  uint64_t peak_gradient_bytes;
  uint64_t peak_optimizer_state_bytes;
  uint64_t peak_communication_bytes;
  /* The one allocation that an optimizer makes; no step makes another. */
  uint64_t arena_bytes;
  uint64_t sent_bytes_per_step;
} shardplan_plan_facts;

SHARDPLAN_API shardplan_status shardplan_plan_get_facts(const shardplan_plan* plan, shardplan_plan_facts* facts,
                                                        shardplan_error* error);

/* The same and more as JSON: {"schema": "shardplan.plan/1", "setup": {...}, "resident": {...}, "at_peak": {...}, ...}.
 * Valid as long as the plan. */
SHARDPLAN_API shardplan_status shardplan_plan_get_report(const shardplan_plan* plan, const char** json,
                                                         shardplan_error* error);

/* ---------------------------------------------------------------------------------------------------- communicators */

typedef struct shardplan_communicator shardplan_communicator;

/* Ranks are threads of this process: fills communicators[0 .. ranks-1]. For plans of transport "direct". A rank that is
 * waited for longer than the deadline, gives up or leaves is an error on every other rank, never a hang. */
SHARDPLAN_API shardplan_status shardplan_communicators_create_local(int32_t ranks, uint64_t deadline_milliseconds,
                                                                    shardplan_communicator** communicators,
                                                                    shardplan_error* error);

/* Ranks are processes of one machine, which read each other's memory; each calls this with its rank. For plans of
 * transport "direct". Linux only. `exchange` is how they find each other: an all-gather of one small record per rank,
 * the same size on every rank (MPI_Allgather, a store, files); it is called twice. */
typedef int (*shardplan_exchange_records)(void* user, const void* mine, size_t bytes, void* all);
SHARDPLAN_API shardplan_status shardplan_communicator_create_shared(int32_t rank, int32_t size,
                                                                    uint64_t deadline_milliseconds,
                                                                    shardplan_exchange_records exchange, void* user,
                                                                    shardplan_communicator** communicator,
                                                                    shardplan_error* error);

/* Ranks have a GPU each (`gpu`, from 0, of those that this process sees) and reach each other by NCCL, summing in the
 * plan's order. For plans of transport "staged"; one rank, any. `exchange` as above, called once; NULL for one rank. The
 * module libshardplan-cuda.so is loaded; where it, a driver, that GPU or NCCL is missing, SHARDPLAN_CONFIG_ERROR says
 * which. */
SHARDPLAN_API shardplan_status shardplan_communicator_create_nccl(int32_t rank, int32_t size, int32_t gpu,
                                                                  uint64_t deadline_milliseconds,
                                                                  shardplan_exchange_records exchange, void* user,
                                                                  shardplan_communicator** communicator,
                                                                  shardplan_error* error);

/* A message to a peer (`data` is to be read only) or room for one from it. */
typedef struct shardplan_message {
  void* data;
  size_t bytes;
  int32_t peer;
} shardplan_message;

typedef struct shardplan_peer_failure {
  int32_t peer;    /* that was waited for, or gave up; -1, as it is at first, if not known */
  int32_t gave_up; /* not 0: `text` is what the peer said when it gave up */
  char text[248];  /* what is wrong; UTF-8, ends with 0 */
} shardplan_peer_failure;

/* The caller's own way to move bytes between pairs of ranks. Messages between two ranks arrive in the order in which
 * they were sent, in each direction. */
typedef struct shardplan_transport {
  size_t struct_size;
  void* user;
  int32_t rank;
  int32_t size;
  uint64_t deadline_milliseconds; /* of each message */
  /* Sends and receives at once, in whatever order they come; at most one message to and one from each peer. Two ranks
   * agree on the length of what passes between them: 1 byte to 64 MiB. Returns when all has been received and what was
   * sent may be overwritten. Any other number than 0 is a failure, told in `failure`. One call at a time. */
  int (*exchange)(void* user, const shardplan_message* sends, size_t send_count, const shardplan_message* receives,
                  size_t receive_count, shardplan_peer_failure* failure);
  /* Tells the peers, as well as the transport can, that this rank gives up, and why. Does not wait for them. From any
   * thread, and more than once; an exchange of this rank's that is under way ends too. */
  void (*give_up)(void* user, const char* words);
  /* May be NULL: nothing will be called again. Not called where creating the communicator has failed. */
  void (*release)(void* user);
} shardplan_transport;

/* A communicator over it, for plans of transport "staged". The library compares the ranks' calls, sums contributions in
 * the plan's order and knows who is late: the same bits as with every other communicator. */
SHARDPLAN_API shardplan_status shardplan_communicator_create_over(const shardplan_transport* transport,
                                                                  shardplan_communicator** communicator,
                                                                  shardplan_error* error);

/* The rank leaves once the optimizers on it are freed too. */
SHARDPLAN_API void shardplan_communicator_free(shardplan_communicator* communicator);

/* This rank gives up: every wait of a peer ends with an error that has `reason` in it. From any thread. */
SHARDPLAN_API shardplan_status shardplan_communicator_abort(shardplan_communicator* communicator, const char* reason,
                                                            shardplan_error* error);

/* ------------------------------------------------------------------------------------------------------- optimizers */

typedef struct shardplan_optimizer shardplan_optimizer;

/* Initial values of `count` elements of a tensor from element `first` on, in fp32. Must be the same function of
 * (tensor, element) on every rank. Asked for in ranges, so that no rank ever holds the whole model. */
typedef int (*shardplan_initial_values)(void* user, const char* name, uint64_t tensor, uint64_t first, float* values,
                                        size_t count);

/* Collective: every rank calls it, with the same plan. Allocates the arena; there is no other allocation of its kind.
 *
 * `device` is where the arena lies: "cpu", or "cuda" with a communicator of shardplan_communicator_create_nccl. On
 * "cuda" the data of views and gradients is in the GPU's memory. What a call has queued there is done when it returns;
 * what the client has put on streams of its own must be done before its next call. */
SHARDPLAN_API shardplan_status shardplan_optimizer_create(const shardplan_plan* plan, const char* device,
                                                          shardplan_communicator* world,
                                                          shardplan_initial_values initial_values, void* user,
                                                          shardplan_optimizer** optimizer, shardplan_error* error);
SHARDPLAN_API void shardplan_optimizer_free(shardplan_optimizer* optimizer);

/* A tensor's elements, row-major, where they lie in the arena. */
typedef struct shardplan_view {
  void* data;
  uint64_t elements;
  shardplan_dtype dtype;
} shardplan_view;

typedef struct shardplan_unit_views {
  const shardplan_view* parameters; /* to be read only; one for each tensor of the unit, in the catalog's order */
  const shardplan_view* gradients;  /* NULL but in a backward pass */
  size_t count;
} shardplan_unit_views;

typedef int32_t shardplan_program;
enum {
  SHARDPLAN_TRAIN_MICRO_BATCH = 0, /* every micro-batch of a step but the last */
  SHARDPLAN_LAST_MICRO_BATCH = 1,  /* the last, or only, one */
  SHARDPLAN_EVALUATE = 2           /* forward passes only */
};

typedef int32_t shardplan_pass;
enum {
  SHARDPLAN_FORWARD = 1,
  SHARDPLAN_RECOMPUTE = 2, /* with recompute "full", before each unit's backward */
  SHARDPLAN_BACKWARD = 3
};

/* A micro-batch: begin, then enter and leave units 0, 1, ... forward, then the last, ..., 1, 0 backward. */
SHARDPLAN_API shardplan_status shardplan_optimizer_begin(shardplan_optimizer* optimizer, shardplan_program program,
                                                         shardplan_error* error);

/* Views of the unit, valid until shardplan_optimizer_leave. In a backward pass the client adds to the gradients: those
 * of the mean over its micro-batch, times the loss scale. They are zero at first (a tied tensor's: what later units
 * have added); a frozen tensor's has no elements. */
SHARDPLAN_API shardplan_status shardplan_optimizer_enter(shardplan_optimizer* optimizer, uint64_t unit,
                                                         shardplan_pass pass, shardplan_unit_views* views,
                                                         shardplan_error* error);
SHARDPLAN_API shardplan_status shardplan_optimizer_leave(shardplan_optimizer* optimizer, uint64_t unit,
                                                         shardplan_error* error);

/* For clients that ignore units, where the plan does not shard parameters (stages 0 to 2, or one rank).
 *
 * A unit's parameters, between micro-batches: the data stays where it is as long as the optimizer lives, the array of
 * views is valid until the next call. */
SHARDPLAN_API shardplan_status shardplan_optimizer_get_parameters(shardplan_optimizer* optimizer, uint64_t unit,
                                                                  shardplan_unit_views* views, shardplan_error* error);

/* A whole micro-batch in the place of begin, enter and leave: the gradients, one for each tensor of the catalog in its
 * order, in F32, BF16 or F16. One of 0 elements contributes zeros, as a frozen tensor's must. */
SHARDPLAN_API shardplan_status shardplan_optimizer_reduce(shardplan_optimizer* optimizer, shardplan_program program,
                                                          const shardplan_view* gradients, size_t count,
                                                          shardplan_error* error);

typedef struct shardplan_step_report {
  size_t struct_size;
  uint64_t step;         /* steps applied so far, this one included */
  int32_t skipped;       /* 1: a gradient was not finite on some rank, so nothing changed but the loss scale */
  int32_t groups;        /* of parameters */
  double norm;           /* of the unscaled gradients, before clipping; not finite if skipped */
  double group_norms[6]; /* of each parameter group */
  double clip_factor;
  double loss_scale;      /* that this step's losses were multiplied by */
  double next_loss_scale; /* for the next one */
  uint64_t sent_bytes;    /* by this rank, since the last step */
  double communication_seconds;
  double update_seconds;
} shardplan_step_report;

/* Ends a step after its last micro-batch. `report` may be NULL. A step is a transaction: a failure before all ranks
 * have agreed on the norm changes nothing, and the next begin starts the step anew; an interruption after it is mended
 * by the next begin or step, with the bits of an undisturbed one. */
SHARDPLAN_API shardplan_status shardplan_optimizer_step(shardplan_optimizer* optimizer, shardplan_step_report* report,
                                                        shardplan_error* error);

/* For schedules: takes effect with the next step. The same on every rank. `group` counts from 0. */
SHARDPLAN_API shardplan_status shardplan_optimizer_set_learning_rate(shardplan_optimizer* optimizer, size_t group,
                                                                     double learning_rate, shardplan_error* error);

/* Collective: the parameters in full precision, tensor by tensor, each whole, on every rank, whatever the stage; tied
 * ones are left out. Holds one unit in fp32 at a time, beyond the arena. */
typedef int (*shardplan_parameter_visitor)(void* user, const char* name, uint64_t tensor, const float* values,
                                           size_t count);
SHARDPLAN_API shardplan_status shardplan_optimizer_visit_parameters(shardplan_optimizer* optimizer,
                                                                    shardplan_parameter_visitor visit, void* user,
                                                                    shardplan_error* error);

/* ------------------------------------------------------------------------------------------------ state in and out */

/* The state is addressed by tensor, kind and element, and does not depend on world size or stage: what N ranks have
 * saved, M ranks at another stage can load. Options, learning rates among them, are no state. */
typedef int32_t shardplan_state_kind;
enum {
  SHARDPLAN_STATE_PARAMETER = 0, /* in full precision: the master where the precision has one */
  SHARDPLAN_STATE_FIRST_MOMENT = 1,
  SHARDPLAN_STATE_SECOND_MOMENT = 2,
  SHARDPLAN_STATE_EMA = 3
};

typedef struct shardplan_state_range {
  size_t struct_size;
  const char* name;
  uint64_t tensor; /* place in the catalog's order */
  shardplan_state_kind kind;
  shardplan_dtype dtype;
  uint64_t first; /* element */
  uint64_t elements;
} shardplan_state_range;

/* The part that is the same on every rank. */
typedef struct shardplan_step_state {
  size_t struct_size;
  uint64_t steps_applied;
  double loss_scale; /* for the next losses */
  uint64_t clean_steps;
  uint64_t hysteresis_left;
} shardplan_step_state;

SHARDPLAN_API shardplan_status shardplan_optimizer_get_step_state(const shardplan_optimizer* optimizer,
                                                                  shardplan_step_state* state, shardplan_error* error);

/* Between steps; no collective. Every element of the state is visited on exactly one rank of the world. */
typedef int (*shardplan_state_visitor)(void* user, const shardplan_state_range* range, const void* values);
SHARDPLAN_API shardplan_status shardplan_optimizer_visit_state(shardplan_optimizer* optimizer,
                                                               shardplan_state_visitor visit, void* user,
                                                               shardplan_error* error);

/* Between steps; no collective, but every rank must do it. Asks for whatever this rank holds; `load` writes every
 * element. If it fails midway, the optimizer can only be loaded again, or freed. */
typedef int (*shardplan_state_loader)(void* user, const shardplan_state_range* range, void* values);
SHARDPLAN_API shardplan_status shardplan_optimizer_load_state(shardplan_optimizer* optimizer,
                                                              const shardplan_step_state* state,
                                                              shardplan_state_loader load, void* user,
                                                              shardplan_error* error);

/* ------------------------------------------------------------------------------------------------------ checkpoints */

/* A folder of checkpoints that any number of ranks at any stage can load, and that is the old one or the new one, whole,
 * after a crash at any instant: docs/checkpoints.md. All ranks see one folder, into which one program at a time saves.
 * All calls are collective and happen between steps; where one rank fails, all fail, with the same error. */
typedef struct shardplan_save_options {
  size_t struct_size;
  const void* client;    /* the caller's own bytes, as generators and its place in the data; rank 0's are kept */
  uint64_t client_bytes; /* at most 16 MiB */
  uint64_t keep;         /* whole checkpoints that stay in the folder; 0: all */
  uint64_t memory_bytes; /* that a rank may hold beyond its arena, at least 4 MiB; 0: 64 MiB */
} shardplan_save_options;

/* `options` may be NULL: no bytes of the caller's, and all checkpoints stay. `name`, which may be NULL, is set to that of
 * the new checkpoint, valid until the next save. SHARDPLAN_CHECKPOINT_ERROR where a rank could not write: the folder is
 * then as it was. */
SHARDPLAN_API shardplan_status shardplan_optimizer_save(shardplan_optimizer* optimizer, const char* folder,
                                                        const shardplan_save_options* options, const char** name,
                                                        shardplan_error* error);

/* Saves while training goes on: copies the rank's part of the state into host memory, which the first call allocates
 * (as much as `memcalc plan --save-background` says), and writes from there by another thread. At most one save is under way:
 * the one before is finished first. Destroying the optimizer leaves a save that was not finished unpublished. */
SHARDPLAN_API shardplan_status shardplan_optimizer_save_in_background(shardplan_optimizer* optimizer,
                                                                      const char* folder,
                                                                      const shardplan_save_options* options,
                                                                      shardplan_error* error);

/* Publishes the save in the background, if every rank has written its part; where `wait` is not 0, waits for that. After
 * each step, say. What went wrong in the background is told here, or by the next save in the background. `name`, which may be
 * NULL, is set to NULL where the save is still under way, else to the last checkpoint's name ("" where there was none), valid
 * until the next save. */
SHARDPLAN_API shardplan_status shardplan_optimizer_finish_save(shardplan_optimizer* optimizer, int wait,
                                                               const char** name, shardplan_error* error);

/* Valid until the next load. */
typedef struct shardplan_load_report {
  size_t struct_size;
  const char* name;   /* of the checkpoint; "." where the folder is one; "": there was no whole one, and the optimizer
                         has its initial values */
  const void* client; /* as it was saved */
  uint64_t client_bytes;
  const char* const* notes; /* which checkpoints were passed over, and why */
  size_t note_count;
} shardplan_load_report;

/* Loads what the folder's `latest` names, or the newest checkpoint that is whole. `report` may be NULL.
 * SHARDPLAN_CONFIG_ERROR, with the tensor's name, for a checkpoint of another model, or of state in other dtypes. */
SHARDPLAN_API shardplan_status shardplan_optimizer_load(shardplan_optimizer* optimizer, const char* folder,
                                                        shardplan_load_report* report, shardplan_error* error);

#ifdef __cplusplus
}
#endif
/* NOLINTEND */
#endif
