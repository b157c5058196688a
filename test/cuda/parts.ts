/** The parts of test:cuda (run.ts), which of them can be run where, and what became of them. */

export interface Part {
  /** Test files without their extension, or a folder of them. */
  readonly files: readonly string[];
  readonly grep?: string;
  /** The tool of compute-sanitizer that it runs under. */
  readonly sanitizer?: string;
  /** Whether the library computes on the device, and not only the addon for tests. */
  readonly library?: true;
  /** Seconds after which a test hangs; as long as all may take where there is none. */
  readonly patience?: number;
}

const OPS = ["backends", "invariance", "token-loss", "kinks", "optimizer", "kl-divergence"].map(
  (name) => `test/ops/${name}`,
);
const DEVICE = ["host-copies", "contents", "sums", "filled-device"].map((name) => `test/simt/${name}`);
const HOPPER = ["hopper", "hopper-attention", "hopper-head"].map((name) => `test/simt/${name}`);
export const PARTS: Readonly<Record<string, Part>> = {
  ops: { files: [...OPS, ...DEVICE], patience: 60 },
  hopper: { files: HOPPER, patience: 60 },
  models: { files: ["test/model/gradients"], grep: "CUDA kernels", patience: 60 },
  decoding: { files: ["test/model/decoding", "test/simt/recorded-steps"], patience: 60 },
  parity: { files: ["test/parity"], library: true, patience: 180 },
  memory: { files: ["test/model/memory", "test/trainers/device-copies"], library: true, patience: 180 },
  quickstart: { files: ["test/pipeline/quickstart.test"], grep: "quickstart's pipeline", library: true },
  ppo: { files: ["test/learning/happy-words.test"], grep: "PPO", library: true },
  memcheck: { files: OPS.slice(0, 1), sanitizer: "memcheck", patience: 120 },
  racecheck: { files: OPS.slice(0, 1), sanitizer: "racecheck", patience: 120 },
  "memcheck-hopper": { files: HOPPER, sanitizer: "memcheck", patience: 120 },
  "racecheck-hopper": { files: HOPPER, sanitizer: "racecheck", patience: 120 },
};

/** A part by its name, or a file of tests as one. */
export function partOf(name: string): Part | undefined {
  return PARTS[name] ?? (name.includes("/") ? { files: [name.replace(/\.[jt]s$/, "")] } : undefined);
}

/** What there is to run parts on. */
export interface Place {
  readonly backend: string;
  readonly computeCapability: number;
  readonly sanitizer: string | undefined;
}

/** Why a part cannot run here, if so. */
function obstacleOf(name: string, { backend, computeCapability, sanitizer }: Place): string | undefined {
  const part = PARTS[name];
  if (backend !== "cuda" && (part?.library || part?.sanitizer)) return "only on a GPU";
  if (part?.sanitizer && !sanitizer) return "compute-sanitizer is not installed";
  const isOfHopper = part?.files === HOPPER && backend === "cuda";
  return isOfHopper && computeCapability !== 90 ? "not a GPU of compute capability 9.0" : undefined;
}

/** The parts to run, those that were named or all that can be, and why others are left out. */
export function chosenParts(named: readonly string[], place: Place): { parts: string[]; leftOut: string[] } {
  const unknown = named.find((name) => !partOf(name));
  if (unknown) throw new Error(`no part "${unknown}"; there are ${Object.keys(PARTS).join(", ")}`);
  if (named.length > 0) {
    for (const name of named) {
      const obstacle = obstacleOf(name, place);
      if (obstacle) throw new Error(`${name}: ${obstacle}`);
    }
    return { parts: [...named], leftOut: [] };
  }
  const obstacles = Object.keys(PARTS).map((name) => ({ name, obstacle: obstacleOf(name, place) }));
  return {
    parts: obstacles.flatMap(({ name, obstacle }) => (obstacle ? [] : [name])),
    leftOut: obstacles.flatMap(({ name, obstacle }) => (obstacle ? [`${name} (${obstacle})`] : [])),
  };
}

/** The last line and the exit code: nothing passes by being left out. */
export function conclusionOf(
  failed: readonly string[],
  leftOut: readonly string[],
): { line: string; exitCode: number } {
  const isWhole = leftOut.length === 0;
  const result = failed.length > 0 ? `failed: ${failed.join(", ")}` : isWhole ? "all parts passed" : "passed";
  return {
    line: isWhole ? result : `${result}; left out: ${leftOut.join(", ")}`,
    exitCode: failed.length > 0 ? 1 : isWhole ? 0 : 2,
  };
}
