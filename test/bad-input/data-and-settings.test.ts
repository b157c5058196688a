import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import {
  loadPreferences,
  loadPrompts,
  loadScored,
  loadSft,
  loadUnpaired,
  RewardEnsemble,
  readMetrics,
} from "../../lib/index.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { temporaryDirectory } from "../data/support.ts";
import { type BadCase, itRefuses } from "./support.ts";

const GOOD = '{"prompt":"a","response":"b"}\n';

describe("bad input: data", () => {
  const directory = temporaryDirectory();
  let count = 0;
  /** A reader given a file of this content. */
  const reading = (
    content: string | Uint8Array,
    {
      name = "rows.jsonl",
      read = loadSft,
    }: { name?: string; read?: (path: string) => Promise<unknown> } = {},
  ) => {
    const file = join(directory, `${count++}-${name}`);
    writeFileSync(file, content);
    return () => read(file);
  };
  const withOptions = (options: object) => reading(GOOD, { read: (path) => loadSft(path, options) });
  const truncatedGzip = gzipSync(GOOD.repeat(1000)).subarray(0, 40);

  const cases: BadCase[] = [
    ["an empty file", "ERR_RLHF_DATA", /rows\.jsonl: no usable row among 0 read/, reading("")],
    ["blank lines", "ERR_RLHF_DATA", /no usable row among 0 read/, reading("\n\n  \n")],
    ["an empty list", "ERR_RLHF_DATA", /no usable row among 0 read/, reading("[]", { name: "rows.json" })],
    ["a row of null", "ERR_RLHF_DATA", /rows\.jsonl:1: row has null; expected one of/, reading("null\n")],
    [
      "a key misspelt in the second row",
      "ERR_RLHF_DATA",
      /:2: row "response" is missing \(set onBadRow/,
      reading(`${GOOD}{"prompt":"a","respons":"b"}\n`),
    ],
    [
      "invalid UTF-8",
      "ERR_RLHF_DATA",
      /:2: row is not UTF-8 text/,
      reading(Buffer.concat([Buffer.from(GOOD), Buffer.of(0xff, 0xc3, 10)])),
    ],
    ["UTF-16", "ERR_RLHF_DATA", /:1: row is not (JSON|UTF-8)/, reading(Buffer.from(GOOD, "utf16le"))],
    [
      "a .gz that is none",
      "ERR_RLHF_DATA",
      /cannot be read: incorrect header/,
      reading(GOOD, { name: "r.jsonl.gz" }),
    ],
    [
      "a .gz that breaks off",
      "ERR_RLHF_DATA",
      /cannot be read: unexpected end of file/,
      reading(truncatedGzip, { name: "r.jsonl.gz" }),
    ],
    [
      "an empty .parquet",
      "ERR_RLHF_DATA",
      /r\.parquet: cannot be read as a parquet/,
      reading("", { name: "r.parquet" }),
    ],
    ["nesting that never ends", "ERR_RLHF_DATA", /:1: row is not JSON/, reading(`${"[".repeat(100_000)}\n`)],
    [
      "a margin of text",
      "ERR_RLHF_DATA",
      /:1: row "margin" must be a finite number, got string/,
      reading('{"prompt":"a","chosen":"b","rejected":"c","margin":"big"}\n', { read: loadPreferences }),
    ],
    [
      "a score of null",
      "ERR_RLHF_DATA",
      /:1: row "score" must be a finite number, got null/,
      reading('{"prompt":"a","response":"b","score":null}\n', { read: loadScored }),
    ],
    [
      "a label of text",
      "ERR_RLHF_DATA",
      /:1: row "label" must be true or false, got "yes"/,
      reading('{"prompt":"a","completion":"b","label":"yes"}\n', { read: loadUnpaired }),
    ],
    [
      "an empty prompt",
      "ERR_RLHF_DATA",
      /:1: row is an empty prompt/,
      reading('{"prompt":""}\n', { read: loadPrompts }),
    ],
    ["no files", "ERR_RLHF_ARGUMENT", /no data file was given/, () => loadSft([])],
    [
      "a limit below 1",
      "ERR_RLHF_ARGUMENT",
      /limit must be a positive integer, got -1/,
      withOptions({ limit: -1 }),
    ],
    [
      "another word for skip",
      "ERR_RLHF_ARGUMENT",
      /onBadRow must be "error" or "skip", got "ignore"/,
      withOptions({ onBadRow: "ignore" }),
    ],
    [
      "another word for drop",
      "ERR_RLHF_ARGUMENT",
      /duplicates must be "keep" or "drop", got true/,
      withOptions({ duplicates: true }),
    ],
    [
      "metrics that are not there",
      "ERR_RLHF_IO",
      /none\.jsonl: cannot be read: ENOENT/,
      () => readMetrics(join(directory, "none.jsonl")),
    ],
    [
      "an ensemble of nothing",
      "ERR_RLHF_ARGUMENT",
      /every member must be a RewardModel/,
      () => new RewardEnsemble([null] as never),
    ],
  ];
  itRefuses(cases);
});

describe("bad input: pipeline files", () => {
  const directory = temporaryDirectory();
  const file = join(directory, "pipeline.yaml");
  const bomb = "abcdef"
    .split("")
    .map((name, i) => `${name}: &${name} [${Array(9).fill(i === 0 ? "x" : `*${"abcdef"[i - 1]}`)}]`)
    .join("\n");
  const cases: [what: string, text: string | Uint8Array, at: string, message: RegExp][] = [
    ["an alias without an anchor", "seed: 1\nstages: *later\n", ":2:9", /Unresolved alias .*: later/],
    ["an alias in a list", "stages:\n - sft: {data_path: [*x]}", ":2:22", /Unresolved alias/],
    ["aliases that multiply without end", bomb, ":1:1", /alias count/],
    ["a stage that holds itself", "stages: &a\n- sft: &b\n    init: *b\n", ":3:5", /output_dir: is required/],
    ["a tab for indentation", "stages:\n\t- sft: {}\n", ":2:1", /[Tt]abs/],
    ["two documents", "---\nseed: 1\n---\nseed: 2\n", ":3:1", /multiple documents/],
    ["text alone", "stages", ":1:1", /expected object, received string/],
    ["a list", "- sft", ":1:1", /expected object, received array/],
    ["a key that is a list", "? [seed]\n: 1\n", ":1:1", /unknown key/],
    ["bytes that are no UTF-8", Buffer.of(0x73, 0x3a, 0x20, 0xff, 0x0a), "", /cannot be read: .*utf-8/i],
  ];
  itRefuses(
    cases.map(
      ([what, text, at, message]): BadCase => [
        what,
        "ERR_RLHF_CONFIG",
        new RegExp(`^${file.replaceAll(".", "\\.")}${at}: .*${message.source}`, message.flags.concat("s")),
        () => {
          writeFileSync(file, text);
          return readPipeline(file);
        },
      ],
    ),
  );

  it("the anchors that YAML has do work", async () => {
    writeFileSync(
      file,
      "stages:\n - sft: {model_path: m, data_path: &d x.jsonl, output_dir: a}\n - reward: {model_path: a, data_path: *d, output_dir: b}\n",
    );
    assert.equal((await readPipeline(file)).length, 2);
  });
});
