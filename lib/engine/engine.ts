import { AsyncLocalStorage } from "node:async_hooks";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { COMPUTE_TYPES, type ComputeType } from "./compute-type.ts";
import { type DeviceName, nativeDevice } from "./device.ts";
import {
  defaultMemoryBudget,
  type EngineCopies,
  type EngineMemory,
  type MemoryBudget,
  toMemoryBudget,
} from "./memory.ts";
import {
  call,
  type NativeEngine,
  type NativeEngineInfo,
  type NativeEngineOptions,
  native,
} from "./native.ts";

export interface EngineOptions {
  /** Default "auto". */
  readonly device?: DeviceName;
  /** CPU threads. Default: RLHF_NUM_THREADS, else the number of hardware threads. */
  readonly threads?: number;
  /**
   * The most memory that the engine may hold, as bytes or as text such as "12GiB"; what would go over it is ERR_RLHF_MEMORY before
   * it is taken. It holds for all models of the engine, the last one that was given. Default: the machine's, or the container's; on "cuda"
   * what the GPU has free when the engine is made, but for a thirty-second.
   */
  readonly memoryBudget?: MemoryBudget;
}

export interface TransformerEngineOptions extends EngineOptions {
  /**
   * What matrix products of transformers are computed in. "bfloat16" rounds their factors, forward and backward, and sums in float32:
   * several times as fast where the processor has instructions for it (`doctor` tells), with 8 bits of precision in each factor.
   * "bfloat16x3" splits each factor into two numbers of bfloat16 and sums three of their four products: 16 bits of precision, nearly twice
   * as fast as "float32" where the processor has AMX, slower elsewhere; on the CPU alone.
   * On "cuda" activations and the weights that products read are bfloat16 as well. What is kept and trained, statistics, losses,
   * gradients of weights and the optimizer are float32 either way. "float16" is there on "cuda" alone: 11 bits of precision, and a range
   * so small that gradients are scaled (`Optimizer.lossScale`) and activations may overflow. Default "float32".
   */
  readonly compute?: ComputeType;
}

export const ENGINE_OPTIONS: NamesOf<EngineOptions> = { device: true, threads: true, memoryBudget: true };
const TRANSFORMER_OPTIONS: NamesOf<TransformerEngineOptions> = { ...ENGINE_OPTIONS, compute: true };

const shared = new Map<string, Engine>();
/** The engine that takes the place of the shared ones while an estimate is made. */
const planning = new AsyncLocalStorage<Engine>();

/** What the native engine is made with. */
function nativeOptions({
  device,
  threads,
  compute = "float32",
}: TransformerEngineOptions): NativeEngineOptions & { compute: ComputeType } {
  if (!COMPUTE_TYPES.includes(compute))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `compute must be "float32", "bfloat16x3", "bfloat16" or "float16", got "${String(compute)}"`,
      { compute },
    );
  const where = nativeDevice(device, threads);
  if (compute === "float16" && where.device === "cpu")
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      'the CPU has no products in float16: give compute: "bfloat16", or device: "cuda"',
      { compute },
    );
  if (compute === "bfloat16x3" && where.device === "cuda")
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      'products in bfloat16x3 are there on the CPU alone: give compute: "bfloat16" or "float32", or device: "cpu"',
      { compute },
    );
  return { ...where, compute };
}

/**
 * A device with its threads, its scratch memory and the queue on which all commands of its models run, in the order of the
 * calls. Models on one engine share it; results do not depend on the number of threads.
 */
export class Engine {
  readonly native: NativeEngine;
  readonly info: NativeEngineInfo;
  /** What another one of its kind is made with. */
  readonly options: TransformerEngineOptions;
  /** True for an engine that lays memory out without taking it and computes nothing. */
  readonly plans: boolean;

  private constructor(
    options: NativeEngineOptions & Pick<TransformerEngineOptions, "compute">,
    plans = false,
  ) {
    this.native = call(() => new (native().Engine)({ ...options, planning: plans }));
    this.info = this.native.info;
    this.options = options;
    this.plans = plans;
  }

  /**
   * The engine for a device, number of threads and type of products; the same one for the same options.
   * Throws ERR_RLHF_NO_CUDA, ERR_RLHF_NO_CUDA_DRIVER, ERR_RLHF_OLD_CUDA_DRIVER, ERR_RLHF_NO_CUDA_DEVICE, ERR_RLHF_NO_BINARY or
   * ERR_RLHF_ARGUMENT.
   */
  static shared(options: TransformerEngineOptions = {}): Engine {
    refuseUnknownOptions("Engine.shared", options, TRANSFORMER_OPTIONS);
    const made = nativeOptions(options);
    const plan = planning.getStore();
    if (plan) return plan;
    const key = `${made.device}:${made.threads}:${made.compute}`;
    let engine = shared.get(key);
    if (!engine) {
      engine = new Engine(made);
      shared.set(key, engine);
      engine.setMemoryBudget(engine.defaultMemoryBudget());
    }
    if (options.memoryBudget !== undefined) engine.setMemoryBudget(options.memoryBudget);
    return engine;
  }

  /**
   * Runs `body` with an engine that lays memory out as the shared one with these options would, and neither takes it nor computes:
   * models made or loaded in `body` are on it, and what it counts is the estimate. Their results have no meaning.
   */
  static async whilePlanning<Result>(
    options: TransformerEngineOptions,
    body: (engine: Engine) => Promise<Result>,
  ): Promise<Result> {
    refuseUnknownOptions("Engine.whilePlanning", options, TRANSFORMER_OPTIONS);
    const engine = new Engine(nativeOptions(options), true);
    try {
      return await planning.run(engine, () => body(engine));
    } finally {
      engine.native.dispose();
    }
  }

  /** What the budget would be by default, with what the device has free now. */
  defaultMemoryBudget(): number {
    return defaultMemoryBudget(call(() => this.native.limits()));
  }

  /** See EngineOptions; what is held already stays. Throws ERR_RLHF_ARGUMENT for what is no budget. */
  setMemoryBudget(budget: MemoryBudget): void {
    const bytes = toMemoryBudget(budget);
    call(() => this.native.setMemoryBudget(bytes));
  }

  /** Bytes that the engine holds for all its models, and the most that each use has ever held. */
  memory(): EngineMemory {
    return call(() => this.native.memory());
  }

  /** What was copied between the process's memory and the device's so far. */
  copies(): EngineCopies {
    return call(() => this.native.copies());
  }

  /**
   * Gives back what an engine still holds when its models are disposed: threads, scratch memory, a GPU's context. The next use makes
   * another one.
   */
  dispose(): void {
    for (const [key, engine] of shared) if (engine === this) shared.delete(key);
    this.native.dispose();
  }
}
