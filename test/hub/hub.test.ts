import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { hubCacheDirectory } from "../../lib/hub/cache.ts";
import { parseHubId } from "../../lib/hub/id.ts";
import {
  CausalLM,
  downloadDataset,
  downloadModel,
  type HubOptions,
  loadModel,
  loadPreferences,
  trainTokenizer,
} from "../../lib/index.ts";
import { withLocalPaths } from "../../lib/pipeline/hub-paths.ts";
import { readStage } from "../../lib/pipeline/settings-file.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { COMMIT, HubServer, type Repository } from "./server.ts";

const pairs = [{ prompt: "p", chosen: "a", rejected: "b" }];
const parquet = readFileSync(new URL("../data/fixtures/pairs-snappy.parquet", import.meta.url));

const datasets: Repository[] = [
  {
    kind: "dataset",
    name: "owner/pairs",
    large: ["data/train-00000-of-00002.parquet"],
    files: {
      "README.md": Buffer.from("# pairs"),
      "data/train-00000-of-00002.parquet": parquet,
      "data/train-00001-of-00002.jsonl.gz": gzipSync(jsonLines(pairs)),
      "data/test.jsonl": Buffer.from(jsonLines(pairs)),
    },
  },
  { kind: "dataset", name: "owner/single", files: { "rows.jsonl": Buffer.from(jsonLines(pairs)) } },
  { kind: "dataset", name: "owner/none", files: { "README.md": Buffer.alloc(0) } },
  {
    kind: "dataset",
    name: "owner/gated",
    token: "hf_right",
    files: { "rows.jsonl": Buffer.from(jsonLines(pairs)) },
  },
];

describe("names on the hub", () => {
  const directory = temporaryDirectory();
  let server: HubServer;
  let options: HubOptions;
  const environment = { ...process.env };

  before(async () => {
    const model = join(directory, "model");
    const tokenizer = trainTokenizer(["the cat sat on the mat"], { vocabSize: 258 });
    using made = await CausalLM.create({ ...TINY_LLAMA, vocab_size: 258 }, { device: "cpu" });
    await made.save(model);
    await tokenizer.save(model);
    const files: Record<string, Buffer> = {
      "pytorch_model.bin": Buffer.from("pickle"),
      ".gitattributes": Buffer.alloc(0),
    };
    for (const name of readdirSync(model)) files[name] = readFileSync(join(model, name));
    const nested = Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`small/${name}`, bytes]));
    server = new HubServer([
      ...datasets,
      { kind: "model", name: "owner/tiny", large: ["model.safetensors"], files: { ...files, ...nested } },
    ]);
    await server.listen();
  });
  beforeEach(() => {
    server.requests.length = 0;
    options = { hubUrl: server.url, cacheDirectory: mkdtempSync(join(directory, "cache-")) };
  });
  afterEach(() => {
    // Not another object in its place: what is set in that would not reach native code, such as RLHF_SIMT_SEED.
    for (const name of Object.keys(process.env)) if (!(name in environment)) delete process.env[name];
    Object.assign(process.env, environment);
  });
  after(() => server.close());

  it("are owner/name with a path and a revision", () => {
    const cases: [string, string, string, string][] = [
      ["hub:owner/name", "owner/name", "", "main"],
      ["hub:gpt2", "gpt2", "", "main"],
      ["hub:owner/name/data/train.parquet@v1.0", "owner/name", "data/train.parquet", "v1.0"],
      ["hub:owner/name@refs/convert/parquet", "owner/name", "", "refs/convert/parquet"],
    ];
    for (const [id, name, path, revision] of cases)
      assert.deepEqual(parseHubId(id, "dataset"), { kind: "dataset", name, path, revision });
    for (const id of [
      "hub:",
      "hub:owner/../x",
      "hub:owner/name@",
      "hub:a b/c",
      "hub:owner//x",
      "hub:o/n@v@w",
      "o/n",
    ])
      assert.throws(() => parseHubId(id, "model"), {
        code: "ERR_RLHF_ARGUMENT",
        message: /expected hub:owner/,
      });
  });

  it("of models are loaded, in the cache's layout that Python uses, and not downloaded twice", async () => {
    process.env.HF_ENDPOINT = server.url;
    process.env.HF_HOME = options.cacheDirectory;
    const { model, tokenizer } = await loadModel("hub:owner/tiny@v1", { device: "cpu" });
    model.dispose();
    assert.equal(tokenizer.vocabSize, 258);
    const root = join(options.cacheDirectory!, "hub", "models--owner--tiny");
    assert.equal(readFileSync(join(root, "refs", "v1"), "utf8"), COMMIT);
    const weights = join(root, "snapshots", COMMIT, "model.safetensors");
    assert.ok(lstatSync(weights).isSymbolicLink());
    assert.deepEqual(readFileSync(weights), readFileSync(join(directory, "model", "model.safetensors")));
    assert.ok(!existsSync(join(root, "snapshots", COMMIT, "pytorch_model.bin")), "other forms are left out");
    server.requests.length = 0;
    assert.equal(await downloadModel("hub:owner/tiny@v1"), join(root, "snapshots", COMMIT));
    assert.deepEqual(server.contentRequests, []);
    process.env.HF_HUB_OFFLINE = "1";
    server.requests.length = 0;
    assert.equal(await downloadModel("hub:owner/tiny@v1"), join(root, "snapshots", COMMIT));
    assert.equal(await downloadModel(`hub:owner/tiny@${COMMIT}`), join(root, "snapshots", COMMIT));
    assert.deepEqual(server.requests, []);
  });

  it("of models may be folders", async () => {
    const path = await downloadModel("hub:owner/tiny/small", options);
    assert.ok(existsSync(join(path, "config.json")) && path.endsWith("small"));
    await assert.rejects(downloadModel("hub:owner/tiny/absent", options), {
      code: "ERR_RLHF_HUB",
      message: /holds no config\.json in absent/,
    });
  });

  it("of data sets are a file, or all files whose names begin so", async () => {
    const told: string[] = [];
    const files = await downloadDataset("hub:owner/pairs/data/train", {
      ...options,
      onDownload: (file) => told.push(file),
    });
    assert.deepEqual(
      files.map((file) => file.split(`${COMMIT}/`)[1]),
      ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.jsonl.gz"],
    );
    assert.deepEqual(told, ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.jsonl.gz"]);
    assert.equal((await downloadDataset("hub:owner/single", options)).length, 1);
    await assert.rejects(downloadDataset("hub:owner/pairs", options), {
      code: "ERR_RLHF_HUB",
      message: /name one of its files .* data\/test\.jsonl, data\/train-00000/,
    });
    await assert.rejects(downloadDataset("hub:owner/none", options), {
      message: /no file of a kind that can be read/,
    });
    process.env.HF_ENDPOINT = server.url;
    process.env.HF_HUB_CACHE = options.cacheDirectory;
    assert.equal((await loadPreferences("hub:owner/pairs/data/train")).length, 8);
  });

  it("stand in YAML where paths stand", async () => {
    process.env.HF_ENDPOINT = server.url;
    process.env.HF_HUB_CACHE = options.cacheDirectory;
    const yaml = writeText(
      directory,
      "stage.yaml",
      "model_path: hub:owner/tiny\ndata_path: [hub:owner/pairs/data/train, rows.jsonl]\noutput_dir: out\n",
    );
    const stage = await readStage("sft", yaml, {});
    assert.equal((stage.settings as { model_path?: string }).model_path, "hub:owner/tiny");
    const { settings } = await withLocalPaths(stage, () => undefined, undefined);
    const { model_path: model, data_path: data } = settings as { model_path: string; data_path: string[] };
    assert.ok(existsSync(join(model, "config.json")));
    assert.deepEqual([data.length, data[2]], [3, join(directory, "rows.jsonl")]);
    assert.equal(settings.output_dir, join(directory, "out"));
  });

  it("a download that breaks off goes on where it was", async () => {
    server.breakOff.set("data/train-00000-of-00002.parquet", 1000);
    const [file] = await downloadDataset("hub:owner/pairs/data/train-00000", options);
    assert.deepEqual(readFileSync(file!), parquet);
    assert.ok(
      server.contentRequests.some(
        (request) => request.includes("train-00000") && request.includes("bytes=1000-"),
      ),
      `${server.contentRequests}`,
    );
    const blobs = join(options.cacheDirectory!, "datasets--owner--pairs", "blobs");
    assert.ok(readdirSync(blobs).every((name) => !name.endsWith(".incomplete")));
  });

  it("may be asked for by several at once, and by one after a process that was killed", async () => {
    const id = "hub:owner/pairs/data/train-00000";
    const blobs = join(options.cacheDirectory!, "datasets--owner--pairs", "blobs");
    mkdirSync(blobs, { recursive: true });
    const dead = spawnSync(process.execPath, ["--eval", ""]).pid;
    const etag = createHash("sha256").update(parquet).digest("hex");
    writeFileSync(join(blobs, `${etag}.lock`), String(dead));
    server.breakOff.set("data/train-00000-of-00002.parquet", 1000);
    const all = await Promise.all([1, 2, 3].map(() => downloadDataset(id, options)));
    for (const [file] of all) assert.deepEqual(readFileSync(file!), parquet);
    assert.deepEqual(readdirSync(blobs), [etag]);
  });

  it("contents other than those listed are refused, and fetched anew the next time", async () => {
    server.wrong.set("rows.jsonl", Buffer.from(jsonLines([{ prompt: "p", chosen: "b", rejected: "a" }])));
    await assert.rejects(downloadDataset("hub:owner/single", options), {
      code: "ERR_RLHF_HUB",
      message: /is not what the hub lists/,
    });
    server.wrong.delete("rows.jsonl");
    const [file] = await downloadDataset("hub:owner/single", options);
    assert.equal(readFileSync(file!, "utf8"), jsonLines(pairs));
  });

  it("what passes is tried again: a server's fault, too many requests", async () => {
    server.failures.push(503, 429);
    assert.equal((await downloadDataset("hub:owner/single", options)).length, 1);
  });

  it("that need a token say so, and take it from HF_TOKEN", async () => {
    await assert.rejects(downloadDataset("hub:owner/gated", options), {
      code: "ERR_RLHF_HUB",
      message: /hub:owner\/gated: the hub wants to know who asks: .* set HF_TOKEN/,
    });
    process.env.HF_TOKEN = "hf_wrong";
    await assert.rejects(downloadDataset("hub:owner/gated", options), {
      code: "ERR_RLHF_HUB",
      message: /HF_TOKEN/,
    });
    process.env.HF_TOKEN = "right";
    await assert.rejects(downloadDataset("hub:owner/gated", options), { code: "ERR_RLHF_ARGUMENT" });
    process.env.HF_TOKEN = "hf_right";
    assert.equal((await downloadDataset("hub:owner/gated", options)).length, 1);
  });

  it("that do not exist, a hub that cannot be reached and an empty cache are errors with a cure", async () => {
    await assert.rejects(downloadModel("hub:owner/absent", options), {
      code: "ERR_RLHF_HUB",
      message: /hub:owner\/absent: there is no such model, .*Repository not found/,
    });
    await assert.rejects(downloadModel("hub:owner/tiny@v9", options), { message: /no such revision "v9"/ });
    await assert.rejects(downloadModel("hub:owner/tiny", { ...options, offline: true }), {
      code: "ERR_RLHF_HUB",
      message: /is not in the cache, and HF_HUB_OFFLINE is set/,
    });
    const closed = new HubServer([]);
    await closed.listen();
    const { url } = closed;
    await closed.close();
    await assert.rejects(downloadModel("hub:owner/tiny", { ...options, hubUrl: url }), {
      code: "ERR_RLHF_HUB",
      message: /the hub cannot be reached; set HF_HUB_OFFLINE=1/,
    });
  });

  it("stop when they are aborted", async () => {
    await assert.rejects(downloadModel("hub:owner/tiny", { ...options, signal: AbortSignal.abort() }), {
      code: "ERR_RLHF_ABORTED",
    });
  });

  it("without @huggingface/hub tell how to install it", () => {
    const hub = fileURLToPath(new URL("../../lib/hub/hub.ts", import.meta.url));
    const hooks = `export const resolve = (name, context, next) => {
      if (name === "@huggingface/hub") throw new Error("not installed");
      return next(name, context);
    };`;
    const program = `
      import { register } from "node:module";
      register("data:text/javascript,${encodeURIComponent(hooks)}");
      const { downloadModel } = await import(${JSON.stringify(hub)});
      await downloadModel("hub:o/n").catch((error) => console.log(error.code, error.message));`;
    const { stdout, stderr } = spawnSync(
      process.execPath,
      ["--import", "tsx", "--input-type=module", "--eval", program],
      { encoding: "utf8", cwd: fileURLToPath(new URL("../..", import.meta.url)) },
    );
    assert.match(stdout, /^ERR_RLHF_HUB .*npm install @huggingface\/hub/, stderr);
  });

  it("are kept where Python keeps them", () => {
    assert.equal(hubCacheDirectory({ HF_HUB_CACHE: "/a", HF_HOME: "/b" }), "/a");
    assert.equal(hubCacheDirectory({ HF_HOME: "/b" }), join("/b", "hub"));
    assert.equal(hubCacheDirectory({ XDG_CACHE_HOME: "/c" }), join("/c", "huggingface", "hub"));
    assert.match(hubCacheDirectory({}), /huggingface.hub$/);
  });
});
