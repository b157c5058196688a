import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

/** One change of the CUDA sources. All of them are compiled into one build, which applies the one that RLHF_MUTANT names. */
export interface Mutant {
  readonly id: number;
  /** As a path from csrc/cuda. */
  readonly file: string;
  readonly line: number;
  /** The line as it is, without the space around it. */
  readonly text: string;
  readonly change: string;
}

/** A source with mutants in it, line by line as long as before, and what they are. */
export interface MutatedSource {
  readonly text: string;
  readonly mutants: readonly Mutant[];
}

/**
 * What the changed sources call; goes into prim/platform.cuh, which all of them include. A bound that is a real number is none: it is
 * compared as it was.
 */
export const SELECTOR = `
#include <cstdlib>
#include <type_traits>
namespace rlhf::mutants {
inline int chosen = -1;
inline void choose() {
  const char* text = std::getenv("RLHF_MUTANT");
  chosen = text ? std::atoi(text) : -1;
}
inline bool is(int id) { return chosen == id; }
struct Shift { int by; };
/// 1 for mutant \`id\`, −1 for the next one.
inline Shift shift(int id) { return {chosen == id ? 1 : chosen == id + 1 ? -1 : 0}; }
template <class T>
T operator+(Shift shift, T bound) {
  if constexpr (std::is_integral_v<T>) return static_cast<T>(bound + static_cast<T>(shift.by));
  else return bound;
}
}  // namespace rlhf::mutants
`;

/** Has the choice made at every launch. */
export function mutateLaunch(text: string): string {
  const launch = "simt::launch(";
  if (!text.includes(launch)) throw new Error("prim/launch.cuh launches nothing on the emulator");
  return text.replace(launch, `mutants::choose(), ${launch}`);
}

/** Sources without kernels: the device, the table, and what both compilers share. */
const WITHOUT_KERNELS = [
  ...["device.cu", "plugin.cu", "backend.cu", "platform.cuh", "launch.cuh", "ptx.cuh", "tensor_map.cuh"],
];

/** Files of csrc/cuda that kernels are made of, as paths from it. */
export function kernelFiles(cuda: string): string[] {
  const names = readdirSync(cuda, { recursive: true, encoding: "utf8" });
  return names.filter((name) => /\.cuh?$/.test(name) && !WITHOUT_KERNELS.includes(basename(name))).sort();
}

/** Every op that a file's code runs in: those it exports, and those of the files that include it, or the header of its name. */
export function operatorsOf(cuda: string, file: string): string[] {
  const kernels = kernelFiles(cuda);
  const headers = kernels
    .map((name) => name.replace(/\.cu$/, ".h"))
    .filter((name) => existsSync(join(cuda, name)));
  const texts = new Map(
    [...kernels, ...headers, "backend.cu"].map((name) => [name, readFileSync(join(cuda, name), "utf8")]),
  );
  const reached = new Set([file]);
  for (let before = 0; before !== reached.size; ) {
    before = reached.size;
    for (const [name, text] of texts)
      if (
        [...reached].some((other) => text.includes(`#include "cuda/${other}"`)) ||
        (name.endsWith(".h") && reached.has(name.replace(/\.h$/, ".cu")))
      )
        reached.add(name);
  }
  const known = [...texts.get("backend.cu")!.matchAll(/ops\.(\w+) = /g)].map((match) => match[1]!);
  const exported = [...reached].flatMap((name) =>
    [...texts.get(name)!.matchAll(/^void (\w+)\(OpContext/gm)].map((match) => match[1]!),
  );
  return known.filter((name) => exported.includes(name));
}

/** The [begin, end) of all functions that run on a device. */
function deviceFunctions(text: string): [number, number][] {
  const functions: [number, number][] = [];
  for (const { index } of text.matchAll(/\b(?:RLHF_DEVICE|__global__)\b/g)) {
    if (functions.some(([, end]) => index < end)) continue;
    const begin = bodyOf(text, index);
    let [depth, end] = [0, begin];
    do {
      if (text[end] === "{") depth++;
      if (text[end] === "}") depth--;
      end++;
    } while (depth > 0 && end < text.length);
    functions.push([index, end]);
  }
  return functions;
}

/** Where a function's body begins, or its declaration ends. */
function bodyOf(text: string, from: number): number {
  for (let depth = 0, at = from; at < text.length; at++) {
    if (text[at] === "(") depth++;
    if (text[at] === ")") depth--;
    if (depth === 0 && (text[at] === "{" || text[at] === ";")) return at;
  }
  return text.length;
}

/** The text of an operand that begins here, for a reader. */
function operandAt(code: string, from: number): string {
  let [depth, at] = [0, from];
  for (; at < code.length; at++) {
    const character = code[at]!;
    if ("([{".includes(character)) depth++;
    if (")]}".includes(character) && --depth < 0) break;
    if (depth === 0 && (";?,:".includes(character) || /^(&&|\|\|)/.test(code.slice(at)))) {
      if (!/^::|^.::/.test(code.slice(at - (code[at - 1] === ":" ? 1 : 0)))) break;
    }
  }
  return code.slice(from, at).trim();
}

const BARRIER =
  /\b(?:sync(?:Threads|Warp|Named)|waitFor|arrive|arriveExpecting|publishBarriers|beginProducts|commitProducts|cpAsyncCommit)\([^()]*\)/g;
const WAIT = /\b(cpAsyncWait|waitForProducts)<([^;()]*)>\(([^;()]*)\)/g;
/** A comparison, or a call whose result is the smaller of two. */
const BOUND = /(?<= )(?:<|<=|>|>=)(?= |$)|\b(?:lesser|min)(?=\()/g;
/** An operand of a comparison that says that reals are compared. */
const REAL = /\d\.\d|\btoFloat|\bexp|\bINFINITY/;

/** The real numbers among the arguments of ops, by the text of their headers. */
export function realArguments(header: string): Set<string> {
  return realNames([...header.matchAll(/^ {2}double .*/gm)].map(([line]) => line).join("\n"));
}

/** Names that a text declares as real numbers. */
function realNames(text: string): Set<string> {
  const names = new Set<string>();
  for (const [, list] of text.matchAll(/\b(?:float|double)&? ((?:\w+(?: = [^,;()]*)?(?:, )?)+)/g))
    for (const [, name] of list!.matchAll(/(?:^|, )(\w+)/g)) names.add(name!);
  return names;
}

/** Whether a comparison at this place of a line is one of real numbers. */
function comparesReals(code: string, at: number, end: number, reals: ReadonlySet<string>): boolean {
  const left = /[\w.[\]]+(?=\s$)/.exec(code.slice(0, at))?.[0] ?? "";
  return [left, operandAt(code, end)].some(
    (side) => REAL.test(side) || [...side.matchAll(/\w+/g)].some(([name]) => reals.has(name)),
  );
}

/**
 * A source with every barrier, every arrival and every end of a group left out, every wait one group shallower and every bound one higher and one lower, each where
 * RLHF_MUTANT is its number; numbers begin at `firstId`. The bounds of loops that are unrolled are sizes of arrays, and stay, as do
 * comparisons of reals, which `knownReals` and the source itself name.
 */
export function mutate(
  file: string,
  text: string,
  firstId: number,
  knownReals: ReadonlySet<string>,
): MutatedSource {
  const mutants: Mutant[] = [];
  const functions = deviceFunctions(text);
  const reals = new Set([...knownReals, ...realNames(text)]);
  const lines = text.split("\n");
  let offset = 0;

  const mutateLine = (line: string, index: number): string => {
    const begin = offset;
    offset += line.length + 1;
    const code = line.replace(/\/\/.*$/, "");
    if (/constexpr|static_assert/.test(code)) return line;
    const isUnrolled = /^\s*#pragma unroll(?! 1\b)/.test(lines[index - 1] ?? "");
    const unrolledBound = isUnrolled ? code.search(/ (?:<|<=|>|>=) /) + 1 : -1;
    const inFunction = (at: number): boolean =>
      functions.some(([from, to]) => begin + at > from && begin + at < to);
    const add = (change: string): number => {
      const id = firstId + mutants.length;
      mutants.push({ id, file, line: index + 1, text: line.trim(), change });
      return id;
    };
    return code
      .replace(BOUND, (found, at: number) => {
        const isCall = /\w/.test(found);
        const end = at + found.length;
        if (!inFunction(at) || at === unrolledBound) return found;
        if (isCall ? /RLHF_DEVICE/.test(code) : comparesReals(code, at, end, reals)) return found;
        const bound = isCall ? operandAt(code, at) : `${found} ${operandAt(code, end)}`;
        const id = add(`${bound}, + 1`);
        add(`${bound}, − 1`);
        const shift = `rlhf::mutants::shift(${id}) +`;
        return isCall ? `${shift} ${found}` : `${found} ${shift}`;
      })
      .replace(BARRIER, (call, at: number) =>
        inFunction(at) ? `(rlhf::mutants::is(${add(`no ${call}`)}) ? void() : ${call})` : call,
      )
      .replace(WAIT, (call, wait: string, pending: string, sums: string, at: number) =>
        inFunction(at)
          ? `(rlhf::mutants::is(${add(`${call}, one group less`)}) ? ${wait}<(${pending}) + 1>(${sums}) : ${call})`
          : call,
      );
  };
  return { text: lines.map(mutateLine).join("\n"), mutants };
}
