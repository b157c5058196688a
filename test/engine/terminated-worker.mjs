// Starts commands that take long, says so, and waits to be terminated; or leaves by itself inside a callback.
import { createRequire } from "node:module";
import { parentPort, workerData } from "node:worker_threads";

const { Engine } = createRequire(import.meta.url)(workerData.addon);
const model = await new Engine({ threads: 2 }).createModel(workerData.config, true);
await model.initialise(0.1, 1);

let drawn = 0;
model.generate([Int32Array.of(1), Int32Array.of(2)], workerData.generate, () => {
  if (drawn++ === 0) parentPort.postMessage("running");
  if (workerData.exits && drawn === 3) process.exit(7);
});
const rows = 256;
const batch = {
  tokens: new Int32Array(rows).fill(3),
  offsets: Int32Array.of(0, rows),
  predictions: Int32Array.from({ length: rows - 1 }, (_, i) => i + 1),
};
const options = { adapter: "", head: "", temperature: 1, grad: true, statistics: true };
for (let i = 0; i < 3; i++)
  model.forward(batch, options).then((pass) => pass.backward({ dLogProb: new Float32Array(rows).fill(1) }));
const values = new Float32Array(workerData.config.hidden);
for (let i = 0; i < 20; i++) model.readParameter("model.norm.weight", values);
