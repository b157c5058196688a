import type { Engine, TransformerEngineOptions } from "../engine/engine.ts";
import type { NativeParameter } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import type { NamesOf } from "../option-names.ts";
import type { AdamWOptions } from "./optimizer.ts";
import type { Pass } from "./pass.ts";

/** How the weights of a model are kept in memory. */
export type WeightType = "float32" | "bfloat16" | "float16";

export interface LoadOptions extends TransformerEngineOptions {
  /**
   * How weights are kept. "bfloat16" and "float16" keep the matrices of a frozen model in half the memory; arithmetic is what
   * `compute` says all the same; vectors, adapters, heads and all of AdamW's moments are float32. Matrices that train may be
   * "bfloat16" too: they have no float32 form beside them, and updates are rounded stochastically. On "cuda" 16 bits are possible
   * in the type of `compute` alone. Default "float32".
   */
  readonly dtype?: WeightType;
  /** Whether the base's own weights get gradients. Default "none": adapters and heads train on a frozen base. */
  readonly trainable?: "all" | "none";
  /**
   * Keeps the input of each layer alone for backward, which computes the rest again: less memory for one more forward pass, the same
   * bits. Known as activation or gradient checkpointing. Default false.
   */
  readonly recomputeLayers?: boolean;
  /**
   * Holds the matrices of a frozen base packed for the products of backward passes too, once there is one. False: these take them out of
   * the form for forward products, block by block, which is less memory for longer steps, the same bits. Matrices in 16 bits for products
   * in bfloat16 are held twice all the same. Default true; trainers change it where memoryBudget has no room otherwise.
   */
  readonly packsBackward?: boolean;
}

export interface CreateOptions extends LoadOptions {
  /** Seed of the initial weights. Default 0. */
  readonly seed?: number;
}

export const LOAD_OPTIONS: NamesOf<LoadOptions> = {
  device: true,
  threads: true,
  memoryBudget: true,
  compute: true,
  dtype: true,
  trainable: true,
  recomputeLayers: true,
  packsBackward: true,
};

export const CREATE_OPTIONS: NamesOf<CreateOptions> = { ...LOAD_OPTIONS, seed: true };

/** The part of a model's options that its engine has. */
export function engineOptions({
  device,
  threads,
  memoryBudget,
  compute,
}: LoadOptions): TransformerEngineOptions {
  return { device, threads, memoryBudget, compute };
}

export interface ForwardOptions {
  /** Name of an adapter; left out: the base alone. */
  readonly adapter?: string;
  /** Name of a head, for `value`. */
  readonly head?: string;
  /** Divides the logits in logProb, lse and entropy. Default 1. */
  readonly temperature?: number;
  /** Keeps what `backward` needs. Default false. */
  readonly grad?: boolean;
  /**
   * Whether that includes the logits, where they fit in 512 MiB; false: `backward` computes them again, which is less memory for one more
   * product with the language-model head. Default true.
   */
  readonly keepLogits?: boolean;
  /** False leaves the language-model head out. Default true. */
  readonly statistics?: boolean;
  /** The tokens whose statistics are computed, "all" (default) or those in the batch's mask; the others read 0. */
  readonly predict?: "all" | "masked";
  /**
   * Where the head's values are wanted: at "all" hidden states (default), at those that "masked" tokens are predicted from and at each
   * sequence's last, or at each sequence's "last" alone. What else `value` holds is undefined, and must get no gradient. Of rows that
   * nobody wants nothing is computed in the last layer after its attention, unless all weights train.
   */
  readonly values?: "all" | "masked" | "last";
  /**
   * Switches the adapter's dropout on, for training passes; left out: none. An element's fate follows from the seed, the layer and the
   * tokens up to it, so that the same seed gives the same masks however sequences are batched.
   */
  readonly dropoutSeed?: number | undefined;
  /**
   * Keeps the final hidden states, [N, hidden] float32, until the pass is disposed of, so that another pass can name this one as its
   * `reference`. Default false.
   */
  readonly keepDistribution?: boolean;
  /**
   * A pass with `keepDistribution` on the same batch, of another model or of this one without its adapter: then the pass has `kl`, the
   * divergence from it over the whole vocabulary, and `backward` takes `dKl`. The vocabulary, the temperature and `predict` must be the
   * same. The reference gets no gradient; its pass may be disposed of at once, its weights must not change before `backward`.
   */
  readonly reference?: Pass | undefined;
  /** "reverse" (default): KL(π‖π_ref), what the policy says that the reference would not. "forward": KL(π_ref‖π). */
  readonly klDirection?: KlDirection | undefined;
}

export const FORWARD_OPTIONS: NamesOf<ForwardOptions> = {
  adapter: true,
  head: true,
  temperature: true,
  grad: true,
  keepLogits: true,
  statistics: true,
  predict: true,
  values: true,
  dropoutSeed: true,
  keepDistribution: true,
  reference: true,
  klDirection: true,
};

/** Over which distribution the log-ratio is averaged: the policy's, KL(π‖π_ref), or the reference's, KL(π_ref‖π). */
export type KlDirection = "reverse" | "forward";

export interface OptimizerOptions extends AdamWOptions {
  /** Whether to update the base. Default: yes if it is trainable and no adapter is named. */
  readonly base?: boolean;
  readonly adapter?: string;
  readonly heads?: readonly string[];
}

export const OPTIMIZER_OPTIONS: NamesOf<OptimizerOptions> = {
  betas: true,
  eps: true,
  weightDecay: true,
  seed: true,
  base: true,
  adapter: true,
  heads: true,
};

export interface SaveOptions {
  /** Merges this adapter into the saved weights; the model in memory stays as it is. */
  readonly merge?: string;
  /** Heads to save. Default: all. */
  readonly heads?: readonly string[];
}

export const SAVE_OPTIONS: NamesOf<SaveOptions> = { merge: true, heads: true };

/** One parameter of a model; names and shapes are those of transformers' named_parameters(). */
export interface Parameter extends NativeParameter {
  /** How it is kept in memory. */
  readonly dtype: WeightType;
}

const WEIGHT_TYPES: readonly string[] = ["float32", "bfloat16", "float16"] satisfies WeightType[];

/** Throws ERR_RLHF_UNSUPPORTED for a type that weights cannot be kept as, ERR_RLHF_ARGUMENT for another `trainable` than there is. */
export function checkWeightType({ dtype = "float32", trainable = "none" }: LoadOptions): void {
  if (!WEIGHT_TYPES.includes(dtype))
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `dtype "${dtype}" is not supported; use one of ${WEIGHT_TYPES.join(", ")}`,
      { dtype },
    );
  if (trainable !== "all" && trainable !== "none")
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `trainable must be "all" or "none", got "${String(trainable)}"`,
      {
        trainable,
      },
    );
  if (dtype === "float16" && trainable === "all")
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `weights that train are kept as float32 or "bfloat16", not as "${dtype}": give one of those, or train an adapter or a head on the frozen model`,
      { dtype, trainable },
    );
}

/** Throws ERR_RLHF_UNSUPPORTED where the engine's device cannot compute with weights that are kept so. */
export function checkKeptType({ info }: Engine, dtype: WeightType): void {
  if (info.device === "cpu" || dtype === "float32" || dtype === info.compute) return;
  throw new RlhfError(
    "ERR_RLHF_UNSUPPORTED",
    `on ${info.device} weights are kept as float32 or as what \`compute\` names (${info.compute} here), not as ${dtype}: give compute: "${dtype}" as well, or leave dtype out`,
    { dtype, compute: info.compute },
  );
}
