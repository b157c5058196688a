import { existsSync, readFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { resolve } from "node:path";
import type { Command } from "commander";
import type { NativeDeviceLimits } from "../engine/native.ts";
import { messageOf, RlhfError } from "../errors.ts";
import { packageRoot, packageVersion, requireFrom } from "../package-root.ts";
import { integer } from "./options.ts";

/** One line of the doctor's report. `cure` says how to mend what is wrong. */
export interface Finding {
  readonly subject: string;
  readonly ok: boolean;
  /** A finding that is not ok and not required leaves the exit code at 0. */
  readonly required: boolean;
  readonly text: string;
  readonly cure?: string;
}

/** `doctor`: what is there, whether it computes correctly, and how to mend what is missing. */
export function addDoctorCommand(program: Command): void {
  program
    .command("doctor")
    .description("check the installation: versions, engine, CPU and CUDA, and a comparison of results")
    .option("--threads <n>", "CPU threads to check with; default: all", integer(1))
    .option("--json", "print the findings as JSON", false)
    .action(async (options: { threads?: number; json: boolean }) => {
      const findings = await examine(options.threads);
      process.stdout.write(options.json ? `${JSON.stringify(findings, null, 2)}\n` : describe(findings));
      const failed = findings.filter((finding) => finding.required && !finding.ok);
      if (failed.length > 0) {
        const code = failed.some((finding) => finding.subject === "parity")
          ? "ERR_RLHF_INTERNAL"
          : "ERR_RLHF_NO_BINARY";
        throw new RlhfError(
          code,
          `${failed.map((finding) => finding.subject).join(", ")}: not in order; see above`,
        );
      }
    });
}

/** All findings, in the order of what depends on what. */
export async function examine(threads?: number): Promise<Finding[]> {
  const binary = findBinary();
  const findings = [examineVersions(), examineCpu(), describeBinary(binary)];
  const engine = await examineEngine(threads);
  findings.push(engine, await examineCuda());
  if (engine.ok) findings.push(await examineParity(threads));
  return findings;
}

function examineVersions(): Finding {
  const { node, napi } = process.versions;
  const text = `node-rlhf ${packageVersion()}, Node ${node} (Node-API ${napi}), ${process.platform}-${process.arch}`;
  return { subject: "versions", ok: true, required: true, text };
}

/** Instruction sets that the CPU kernels look for, as /proc/cpuinfo names them. */
const CPU_FEATURES = [
  "avx2",
  "fma",
  "f16c",
  "avx512f",
  "avx512bw",
  "avx512vl",
  "avx512_bf16",
  "amx_bf16",
  "asimd",
];

function examineCpu(): Finding {
  const model = cpus()[0]?.model.trim() ?? "unknown CPU";
  const text = `${model}, ${availableParallelism()} hardware threads${describeFeatures()}`;
  return { subject: "cpu", ok: true, required: true, text };
}

function describeFeatures(): string {
  try {
    const info = readFileSync("/proc/cpuinfo", "utf8");
    const flags = new Set(/^(?:flags|Features)\s*:(.*)$/m.exec(info)?.[1]?.trim().split(/\s+/));
    return `: ${CPU_FEATURES.filter((feature) => flags.has(feature)).join(" ") || "no vector extensions that the engine knows"}`;
  } catch {
    // Only Linux has the file; the engine's own line says what it chose.
    return "";
  }
}

interface FoundBinary {
  readonly path: string | null;
  readonly how: string;
}

/** Where the addon would be loaded from: the same places, in the same order, as lib/engine/load-binary.ts. */
function findBinary(): FoundBinary {
  const override = process.env["RLHF_BUILD_DIR"];
  if (override) return { path: resolve(override, "Release", "rlhf.node"), how: "RLHF_BUILD_DIR" };
  const locate = requireFrom("node-gyp-build") as { path(directory: string): string };
  try {
    const path = locate.path(packageRoot);
    return { path, how: path.includes("prebuilds") ? "prebuilt with the package" : "compiled here" };
  } catch (error) {
    return { path: null, how: messageOf(error).split("\n")[0] ?? "" };
  }
}

function describeBinary(binary: FoundBinary): Finding {
  const found = binary.path !== null && existsSync(binary.path);
  return {
    subject: "binary",
    ok: found,
    required: true,
    text: found ? `${binary.path} (${binary.how})` : `not found (${binary.how})`,
    ...(found ? {} : { cure: "npm install --save-dev cmake-js node-addon-api && npx node-rlhf-build" }),
  };
}

const BFLOAT16_KERNELS = {
  amx: "AMX tiles, and so those in float32 of wide layers",
  dot: "AVX-512 dot products",
  convert: "conversion to float32 (no faster than float32)",
};

async function examineEngine(threads?: number): Promise<Finding> {
  const about = { subject: "engine", required: true };
  try {
    const { Engine } = await import("../engine/engine.ts");
    const {
      backend,
      instructionSet,
      bfloat16Kernel,
      threads: used,
    } = Engine.shared({ device: "cpu", threads }).info;
    return {
      ...about,
      ok: true,
      text: `backend ${backend}, instruction set ${instructionSet}, ${used} threads; products in bfloat16 by ${BFLOAT16_KERNELS[bfloat16Kernel]}`,
    };
  } catch (error) {
    const [text = "", ...cure] = messageOf(error).split("\n");
    return { ...about, ok: false, text, ...(cure.length > 0 ? { cure: cure.join(" ") } : {}) };
  }
}

/** The GPU as its driver names it, and whether there are kernels that only such a one has. */
function describeGpu({ model, computeCapability }: NativeDeviceLimits): string {
  const capability = `compute capability ${(computeCapability / 10).toFixed(1)}`;
  const parts = [model, capability, computeCapability === 90 ? "with Hopper's own kernels" : ""];
  return parts.filter((part) => part !== "").join(", ");
}

async function examineCuda(): Promise<Finding> {
  const about = { subject: "cuda", required: false };
  try {
    const [{ Engine }, { chooseDevice }] = await Promise.all([
      import("../engine/engine.ts"),
      import("../engine/device.ts"),
    ]);
    const { info, native } = Engine.shared({ device: "cuda" });
    const { reason } = chooseDevice("auto");
    const text = `${info.device}, ${info.instructionSet}; ${describeGpu(native.limits())}; ${reason}`;
    return { ...about, ok: true, text };
  } catch (error) {
    const [text = "", ...cure] = messageOf(error).split("\n");
    return {
      ...about,
      ok: false,
      text: `${text}; device "auto" takes the CPU`,
      ...(cure.length > 0 ? { cure: cure.join(" ") } : {}),
    };
  }
}

async function examineParity(threads?: number): Promise<Finding> {
  const about = { subject: "parity", required: true };
  const cure = "the engine computes wrongly on this machine; please report this output";
  try {
    const { checkParity, PARITY_LIMIT } = await import("./parity.ts");
    const { tokens, largestError } = await checkParity(threads);
    const ok = largestError <= PARITY_LIMIT;
    const text = `log-probs of ${tokens} tokens differ from a float64 reference by at most ${largestError.toExponential(1)} (limit ${PARITY_LIMIT})`;
    return { ...about, ok, text, ...(ok ? {} : { cure }) };
  } catch (error) {
    return { ...about, ok: false, text: messageOf(error), cure };
  }
}

/** The report as text, one line for each finding and one for each cure. */
export function describe(findings: readonly Finding[]): string {
  const lines = findings.flatMap((finding) => {
    const mark = finding.ok ? "ok " : finding.required ? "BAD" : "-- ";
    const line = `${mark} ${finding.subject.padEnd(9)}${finding.text}`;
    return finding.cure === undefined ? [line] : [line, `              → ${finding.cure}`];
  });
  return `${lines.join("\n")}\n`;
}
