import { messageOf, RlhfError } from "../errors.ts";
import { call, type NativeEngineOptions, native } from "./native.ts";

/** Where a model computes. "auto" takes the best device that is proved; a device named outright is used or it is an error. */
export type DeviceName = "auto" | "cpu" | "cuda";

/** The device that a name stands for on this machine. */
export interface DeviceChoice {
  readonly device: "cpu" | "cuda";
  /** Why it was chosen: a phrase for people. */
  readonly reason: string;
}

const NAMES: readonly string[] = ["auto", "cpu", "cuda"] satisfies DeviceName[];

/** What "auto" came to; asked once, since a GPU takes its time to start. */
let automatic: DeviceChoice | undefined;

/**
 * The device that `name` stands for, with the reason. "cpu" looks at nothing else, and "cuda" is never replaced by another.
 * Throws ERR_RLHF_ARGUMENT for another name.
 */
export function chooseDevice(name: DeviceName = "auto"): DeviceChoice {
  if (!NAMES.includes(name))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `device must be "auto", "cpu" or "cuda", got "${String(name)}"`,
      {
        device: name,
      },
    );
  if (name !== "auto") return { device: name, reason: "asked for" };
  automatic ??= best();
  return automatic;
}

/** The CPU, until the CUDA backend has been proved on a GPU (npm run test:cuda): so far only an emulator has run it. */
function best(): DeviceChoice {
  try {
    call(() => native().requireCuda());
    return {
      device: "cpu",
      reason: 'auto: there is a GPU, but the CUDA backend has not been proved on one; device "cuda" takes it',
    };
  } catch (error) {
    const [reason = ""] = messageOf(error).split("\n");
    return { device: "cpu", reason: `auto: ${reason}` };
  }
}

/** What the native engine is made with. Throws what `chooseDevice` throws. */
export function nativeDevice(name: DeviceName | undefined, threads: number | undefined): NativeEngineOptions {
  const { device } = chooseDevice(name);
  if (device === "cuda") return { device };
  return { device, threads: threads ?? call(() => native().defaultThreadCount) };
}
