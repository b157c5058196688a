// Rules for csrc/ that no linter knows, run by `npm run lint`:
// CUDA's own syntax stays in csrc/cuda/prim, so that the emulator can compile every kernel, and nothing ends the process.
"use strict";

const { readdirSync, readFileSync } = require("node:fs");
const { join, relative, resolve, sep } = require("node:path");

const root = resolve(__dirname, "..");

const RULES = [
  {
    applies: (path) => path.startsWith("csrc/cuda/") && !path.startsWith("csrc/cuda/prim/"),
    pattern: /<<<|__shfl/,
    message: "launches (<<<) and shuffles belong in csrc/cuda/prim",
  },
  {
    applies: (path) => path.startsWith("csrc/cuda/") && path !== "csrc/cuda/prim/ptx.cuh",
    pattern: /\b(?:asm|__asm__)\b/,
    message: "inline assembly belongs in csrc/cuda/prim/ptx.cuh",
  },
  {
    applies: (path) => path.startsWith("csrc/cpu/"),
    pattern: /^(?!.*RLHF_PREFETCH).*\bvoid\s+\w*fetch\w*\s*\(/i,
    message:
      "a function that only asks for memory is declared with RLHF_PREFETCH (cpu/prefetch.h), or GCC may drop it",
  },
  {
    applies: (path) => !path.startsWith("csrc/simt/"),
    pattern:
      /(?:\bstd::|(?:^|[;{}():,?&|!=]|\breturn|\belse)\s*(?:::)?)(?:_?exit|_Exit|quick_exit|abort|terminate)\s*\(/,
    message: "the engine reports errors and never ends the process: throw rlhf::Error",
  },
];

/** Source text with comments blanked out and line breaks kept, so that line numbers hold. */
function withoutComments(text) {
  const blank = (comment) => comment.replace(/[^\n]/g, " ");
  return text.replace(/"(?:\\.|[^"\\\n])*"|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, (match) =>
    match.startsWith('"') ? match : blank(match),
  );
}

function sourceFiles() {
  return readdirSync(join(root, "csrc"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(?:cc|h|cu|cuh)$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join("/"))
    .sort();
}

function violations(path) {
  const rules = RULES.filter((rule) => rule.applies(path));
  const lines = withoutComments(readFileSync(join(root, path), "utf8")).split("\n");
  return lines.flatMap((line, index) =>
    rules.filter((rule) => rule.pattern.test(line)).map((rule) => `${path}:${index + 1}: ${rule.message}`),
  );
}

const files = sourceFiles();
const found = files.flatMap(violations);
for (const violation of found) console.error(violation);
console.log(`native rules: ${files.length} files, ${found.length} violations`);
if (found.length > 0) process.exitCode = 1;
