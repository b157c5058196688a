import { RlhfError } from "../errors.ts";
import { call, type NativeEngine, type NativeEngineInfo, native } from "./native.ts";

/** Where a model computes. "auto" takes the best device there is; a device named outright is used or it is an error. */
export type DeviceName = "auto" | "cpu" | "cuda";

export interface EngineOptions {
  /** Default "auto". */
  readonly device?: DeviceName;
  /** CPU threads. Default: RLHF_NUM_THREADS, else the number of hardware threads. */
  readonly threads?: number;
}

const shared = new Map<string, Engine>();

function checkDevice(device: DeviceName): void {
  if (device === "cuda") {
    throw new RlhfError(
      "ERR_RLHF_NO_CUDA",
      'device "cuda" was asked for, but models run on the CPU only in this version; use device "cpu" or "auto"',
      { device },
    );
  }
  if (device !== "auto" && device !== "cpu") {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `device must be "auto", "cpu" or "cuda", got "${String(device)}"`,
      {
        device,
      },
    );
  }
}

/**
 * A device with its threads, its scratch memory and the queue on which all commands of its models run, in the order of the
 * calls. Models on one engine share it; results do not depend on the number of threads.
 */
export class Engine {
  readonly native: NativeEngine;
  readonly info: NativeEngineInfo;

  private constructor(handle: NativeEngine) {
    this.native = handle;
    this.info = handle.info;
  }

  /**
   * The engine for a device and number of threads; the same one for the same options.
   * Throws ERR_RLHF_NO_CUDA, ERR_RLHF_NO_BINARY or ERR_RLHF_ARGUMENT.
   */
  static shared(options: EngineOptions = {}): Engine {
    checkDevice(options.device ?? "auto");
    const threads = options.threads ?? call(() => native().defaultThreadCount);
    const key = `cpu:${threads}`;
    let engine = shared.get(key);
    if (!engine) {
      engine = new Engine(call(() => new (native().Engine)({ threads })));
      shared.set(key, engine);
    }
    return engine;
  }
}
