// SPDX-License-Identifier: Apache-2.0
// A daemon of our own on a free loopback port, with copies of the demo model.
import { execFileSync, spawn } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { JEMD_BIN, JEMD_SOURCE } = process.env;
export const sample = name => join(JEMD_SOURCE, "tests", "samples", name);

/* The same model under another name, with a value that would be markup if it were HTML. Lengths
 * stay as they are: safetensors counts bytes. */
function disguise(bytes) {
  const size = Number(bytes.readBigUInt64LE(0)), head = bytes.toString("latin1", 8, 8 + size);
  const other = head.replace(String.raw`\"name\":\"sprites\"`, String.raw`\"name\":\"sprited\"`).replaceAll("ruby-red", "<u>r</u>");
  if (other.length !== size || other === head) throw new Error("the model's header is not as expected");
  return Buffer.concat([bytes.subarray(0, 8), Buffer.from(other, "latin1"), bytes.subarray(8 + size)]);
}

export async function startDaemon({ models = 1, key = false } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "jemd-browser-")), directory = join(folder, "models");
  const model = readFileSync(join(JEMD_SOURCE, "models", "sprites.safetensors"));
  mkdirSync(directory);
  writeFileSync(join(directory, "sprites.safetensors"), model);
  if (models > 1) writeFileSync(join(directory, "sprited.safetensors"), disguise(model));
  const flags = [`--models.directory=${directory}`, "--models.default_model=sprites", `--models.cache=${folder}`, "--http.port=0"];
  let token = "";
  if (key) {
    const file = join(folder, "keys");
    token = execFileSync("sh", ["-c", `umask 077; "$0" key new tester --scopes predict,sample,read 2>&1 >"$1"`, JEMD_BIN, file])
      .toString().match(/: (\S+)\s*$/)[1];
    chmodSync(file, 0o600);
    flags.push(`--auth.keys=${file}`);
  }
  const child = spawn(JEMD_BIN, ["serve", ...flags], { stdio: ["ignore", "ignore", "pipe"] });
  const gone = new Promise(done => child.once("exit", done));
  const port = await new Promise((ready, failed) => {
    let log = "";
    const late = setTimeout(() => failed(new Error(`the daemon is not ready:\n${log}`)), 60000);
    child.once("exit", code => failed(new Error(`the daemon ended with ${code}:\n${log}`)));
    child.stderr.on("data", text => {
      log = (log + text).slice(-20000);
      const found = log.match(/event=ready .*?port=(\d+)/);
      if (found) { clearTimeout(late); ready(Number(found[1])); }
    });
  });
  const stop = async () => {
    child.kill("SIGTERM");
    const late = setTimeout(() => child.kill("SIGKILL"), 25000);
    await gone;
    clearTimeout(late);
    rmSync(folder, { recursive: true });
  };
  return { url: `http://127.0.0.1:${port}`, token, stop };
}
