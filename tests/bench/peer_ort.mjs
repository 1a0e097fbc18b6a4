// SPDX-License-Identifier: Apache-2.0
// An ONNX model in ONNX Runtime, as a child of peers.py: commands on standard input, one JSON line
// each. Usage: node peer_ort.mjs FOLDER MODEL.onnx THREADS SPIN C H W, with onnxruntime-node
// installed in FOLDER and SPIN 1 or 0: whether idle threads spin.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, model, threads, spin, ...size] = process.argv.slice(2);
const shape = size.map(Number);
const { InferenceSession, Tensor } = createRequire(folder + "/")("onnxruntime-node");
const session = await InferenceSession.create(model, {
  executionProviders: ["cpu"],
  graphOptimizationLevel: "all",
  intraOpNumThreads: Number(threads),
  interOpNumThreads: 1,
  extra: { session: { intra_op: { allow_spinning: spin } } },
});

function images(n, values) {
  const length = shape.reduce((a, b) => a * b, n);
  return new Tensor("float32", values ?? Float32Array.from({ length }, Math.random), [n, ...shape]);
}

// The median time of a run, one after the other for so many seconds, after one more.
async function measure(x, seconds) {
  await session.run({ x });
  const times = [];
  const end = performance.now() + 1000 * seconds;
  do {
    const begin = performance.now();
    await session.run({ x });
    times.push(performance.now() - begin);
  } while (performance.now() < end);
  times.sort((a, b) => a - b);
  const middle = times.length >> 1;
  const median = times.length % 2 ? times[middle] : (times[middle - 1] + times[middle]) / 2;
  return { seconds_per_call: median / 1000, calls: times.length };
}

async function logits(source, target, n) {
  const raw = readFileSync(source);
  const values = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length));
  const { data } = (await session.run({ x: images(n, values) })).logits;
  writeFileSync(target, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return {};
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...args] = line.split(" ");
  let answer = { error: `unknown command ${command}` };
  if (command === "forward")
    answer = await measure(images(Number(args[0])), Number(args[1]));
  else if (command === "logits")
    answer = await logits(args[0], args[1], Number(args[2]));
  console.log(JSON.stringify(answer));
}
