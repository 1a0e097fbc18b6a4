// SPDX-License-Identifier: Apache-2.0
// The web page, driven as a person would: node --test test_page.mjs (see test_browser.py).
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

import { sample, startDaemon } from "./daemon.mjs";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
let browser, daemon;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  daemon = await startDaemon({ models: 2 });
});
after(async () => {
  await browser?.close();
  await daemon?.stop();
});

/* Runs body with a fresh page; afterwards nothing may have been complained about, the network errors a test provokes
 * (`noisy`) apart. `slow` delays every answer, so that what comes late is seen to come late. */
async function visit(body, { url = daemon.url, path = "/", noisy = false, slow = false, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  context.setDefaultTimeout(30000);
  const page = await context.newPage(), complaints = [], hosts = new Set();
  page.on("pageerror", e => complaints.push(String(e)));
  page.on("console", m => {
    const network = /Failed to load resource/.test(m.text());
    const late = m.location().url.endsWith("/preview.png"); /* gone with the end of its job */
    if (!["error", "warning"].includes(m.type()) || (network && (noisy || late))) return;
    complaints.push(m.text());
  });
  page.on("request", r => { if (r.url().startsWith("http")) hosts.add(new URL(r.url()).origin); });
  await page.addInitScript(() => {
    window.shifts = [];
    window.violations = [];
    document.addEventListener("securitypolicyviolation", e => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
    new PerformanceObserver(list => {
      for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifts.push(e.value);
    }).observe({ type: "layout-shift", buffered: true });
  });
  if (slow) await page.route("**/v1/**", async route => { await new Promise(done => setTimeout(done, 300)); await route.continue(); });
  try {
    await page.goto(url + path);
    await body(page, context);
    assert.deepEqual(await page.evaluate(() => window.violations), []);
    assert.deepEqual(complaints, []);
    assert.deepEqual([...hosts], [url]);
  } finally {
    await context.close();
  }
}
const chip = (page, attribute, value) =>
  page.getByRole("group", { name: attribute, exact: true }).getByRole("checkbox", { name: value, exact: true });
const drawn = page => page.locator("#job-state").filter({ hasText: "Done" }).waitFor();

async function drawOrcs(page, count = 8) {
  await chip(page, "skin", "orc").check();
  await chip(page, "hair colour", "blue").check();
  await page.getByLabel("Images", { exact: true }).fill(String(count));
  await page.getByLabel("Steps", { exact: true }).fill("60");
  await page.getByLabel("Seed").fill("7");
  await page.getByRole("button", { name: `Draw ${count} images` }).click();
  await drawn(page);
  await page.locator("#lines polyline").first().waitFor({ state: "attached" });
}
/* Tiles that show more than one colour. */
const painted = page => page.locator(".tile canvas").evaluateAll(list => list.filter(c => {
  const data = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
  return new Set(data).size > 16;
}).length);
/* Contrast (WCAG 2) of every text on the page with what is behind it: the ones below 4.5. */
const faint = page => page.evaluate(() => {
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.data.trim() || !e.checkVisibility() || e.closest("script")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${n.data.trim()} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return found;
});

test("the page loads without a complaint and names the model", () => visit(async page => {
  await page.getByRole("heading", { name: "Examine an image" }).waitFor();
  await page.locator("#facts").filter({ hasText: "32 × 32 RGB · 7 attributes · calibrated" }).waitFor();
  const policy = (await page.request.get(daemon.url)).headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
}));

test("an image is told what it shows, how surely, and that it is in", () => visit(async page => {
  await page.getByLabel(/Choose an image/).setInputFiles(sample("orc-blue-hair.png"));
  await page.getByRole("heading", { name: "In: familiar to the model" }).waitFor();
  const tops = await page.locator("#beliefs .top .name").allTextContents();
  assert.deepEqual(tops, ["male", "orc", "long", "blue", "no", "teal", "left"]);
  await page.locator("#energy").filter({ hasText: /Energy −?\d+\.\d\d/ }).waitFor();
  assert.match(await page.locator("#evidence").textContent(), /p-value 0\.\d\d/);
  await page.getByRole("button", { name: "Draw more like this" }).click();
  assert.ok(await chip(page, "skin", "orc").isChecked());
  assert.ok(await chip(page, "beard", "no").isChecked());
}));

test("a foreign image is out, with the daemon's warnings", () => visit(async page => {
  const noise = await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(64, 40), ctx = canvas.getContext("2d");
    for (let i = 0; i < 640; i++) {
      ctx.fillStyle = `hsl(${i * 47} 90% ${20 + i % 60}%)`;
      ctx.fillRect((i % 32) * 2, Math.floor(i / 32) * 2, 2, 2);
    }
    return [...new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer())];
  });
  await page.getByLabel(/Choose an image/).setInputFiles({ name: "noise.png", mimeType: "image/png", buffer: Buffer.from(noise) });
  await page.getByRole("heading", { name: "Out: foreign to the model" }).waitFor();
  await page.locator("#warnings").filter({ hasText: "resized" }).waitFor();
}));

test("a dropped and a pasted image are examined too", () => visit(async page => {
  const bytes = [...(await import("node:fs")).readFileSync(sample("man-red-mohawk.png"))];
  await page.getByLabel("Seed").waitFor();
  for (const kind of ["drop", "paste"]) {
    await page.evaluate(([kind, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
      document.body.dispatchEvent(kind === "drop" ? new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer })
        : new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: transfer }));
    }, [kind, bytes]);
    await page.getByRole("img", { name: `${kind}.png` }).waitFor();
    await page.locator("#beliefs .top").filter({ hasText: "mohawk" }).waitFor();
  }
}));

test("eight orcs with blue hair are drawn, marked and linked", () => visit(async page => {
  await drawOrcs(page);
  assert.equal(await painted(page), 8);
  const captions = await page.locator(".tile .caption").allTextContents();
  assert.equal(captions.length, 8);
  for (const text of captions) assert.match(text, /^E −?\d+\.\d\d[✓✗]$/);
  const [, good] = (await page.locator("#job-eta").textContent()).match(/^(\d) of 8 as asked/);
  assert.equal(captions.filter(text => text.endsWith("✓")).length, Number(good));
  assert.deepEqual(await page.locator("#files a").allTextContents(), ["grid.png", "samples.safetensors", "trace.json", "provenance.json"]);
  const grid = await page.request.get(daemon.url + await page.locator("#files a").first().getAttribute("href"));
  assert.equal(grid.headers()["content-type"], "image/png");
  await page.locator("#jobs button[aria-current=true]").filter({ hasText: "8 × skin orc, hair colour blue" }).waitFor();
  await page.locator(".tile").first().click();
  await page.getByRole("dialog").getByText("hair colour", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Examine it" }).click();
  await page.getByRole("img", { name: "sample 0.png" }).waitFor();
  await page.reload();
  await drawn(page);
}));

test("several values, not, seed and steps reach the daemon as asked", () => visit(async page => {
  await chip(page, "skin", "orc").check();
  await chip(page, "skin", "dark").check();
  await chip(page, "hair", "none").check();
  await page.getByRole("checkbox", { name: "not: exclude the chosen values of hair", exact: true }).check();
  await page.locator("#sentence").filter({ hasText: "skin dark or orc, hair not none" }).waitFor();
  await page.getByLabel("Start from").selectOption("noise");
  await page.getByLabel("Images", { exact: true }).fill("2");
  await page.getByLabel("Steps", { exact: true }).fill("5");
  await page.getByLabel("Seed").fill("18446744073709551615");
  await page.getByRole("button", { name: "Draw 2 images" }).click();
  await drawn(page);
  const id = new URLSearchParams(new URL(page.url()).hash.slice(1)).get("job");
  const { request } = await (await page.request.get(`${daemon.url}/v1/jobs/${id}`)).json();
  assert.deepEqual(request.conditions, [{ count: 2, attributes: { skin: ["dark", "orc"], hair: { not: "none" } } }]);
  assert.deepEqual(request.sampler, { steps: 5, start: "noise" });
  assert.equal(request.seed, "18446744073709551615");
  await page.getByRole("button", { name: "Clear" }).click();
  assert.equal(await chip(page, "skin", "orc").isChecked(), false);
  await page.getByRole("button", { name: "Use again" }).click();
  assert.ok(await chip(page, "skin", "orc").isChecked());
}));

test("a job shows previews while it runs and can be cancelled", () => visit(async page => {
  await page.getByLabel("Start from").selectOption("noise");
  await page.getByLabel("Images", { exact: true }).fill("4");
  await page.getByLabel("Steps", { exact: true }).fill("20000");
  await page.getByRole("button", { name: "Draw 4 images" }).click();
  await page.locator("#job-eta").filter({ hasText: /\d+ %, .* left/ }).waitFor();
  await page.waitForFunction(() => document.querySelector(".tile canvas").width > 32);
  assert.equal(await painted(page), 4);
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.locator("#job-state").filter({ hasText: "Cancelled" }).waitFor();
  await page.locator("#jobs button").first().filter({ hasText: "Cancelled" }).waitFor();
}));

test("an unknown model is named, with what was meant", () => visit(async page => {
  const alert = page.getByRole("alert").filter({ hasText: "spritez" });
  await alert.waitFor();
  assert.match(await alert.textContent(), /Did you mean “sprite[sd]”\?/);
}, { path: "/#model=spritez", noisy: true }));

test("the daemon's refusals are shown where they belong", () => visit(async page => {
  await page.getByLabel(/Choose an image/).setInputFiles({ name: "x.png", mimeType: "image/png", buffer: Buffer.from("not a picture") });
  await page.locator("#look-problem").filter({ hasText: "neither a PNG nor a JPEG" }).waitFor();
  await page.getByLabel("Images", { exact: true }).fill("100000");
  await page.locator("#cost.wrong").filter({ hasText: "1024" }).waitFor();
  await page.locator("#submit").click();
  await page.locator("#draw-problem").filter({ hasText: "At /conditions/0/count." }).waitFor();
}, { noisy: true }));

test("a daemon that goes away is said to be away", async () => {
  const own = await startDaemon();
  let running = true;
  try {
    await visit(async page => {
      await page.getByLabel("Seed").waitFor();
      await own.stop();
      running = false;
      await page.getByRole("alert").filter({ hasText: "The daemon does not answer" }).first().waitFor();
      await page.getByLabel(/Choose an image/).setInputFiles(sample("man-tanned.png"));
      await page.locator("#look-problem").filter({ hasText: "Nothing answers at" }).waitFor();
    }, { url: own.url, noisy: true });
  } finally {
    if (running) await own.stop();
  }
});

test("names and labels are text, never markup", () => visit(async page => {
  const title = "<img src=x onerror=document.title='hacked'>";
  await page.request.post(`${daemon.url}/v1/jobs`, { data: { type: "sample", model: "sprited", labels: { title },
    conditions: [{ count: 1, attributes: { hair_colour: "<u>r</u>" } }], sampler: { steps: 1 } } });
  await page.getByLabel("Model").selectOption("sprited");
  await chip(page, "hair colour", "<u>r</u>").check();
  await page.locator("#sentence").filter({ hasText: "hair colour <u>r</u>" }).waitFor();
  await page.locator("#jobs button").filter({ hasText: title }).click();
  await page.getByRole("heading", { name: title }).waitFor();
  assert.equal(await page.locator("u, #jobs img, #job img").count(), 0);
}));

test("with a key everything works, streaming and downloads too", async () => {
  const guarded = await startDaemon({ key: true });
  try {
    await visit(async page => {
      const streams = [];
      page.on("request", r => { if (r.url().endsWith("/events")) streams.push([r.resourceType(), r.headers().authorization]); });
      await page.getByRole("alert").filter({ hasText: "Unauthorized" }).waitFor();
      await page.getByLabel(/Key, kept until/).fill(guarded.token);
      await page.getByRole("button", { name: "Use key" }).click();
      await drawOrcs(page, 3);
      assert.equal(await painted(page), 3);
      assert.deepEqual(streams[0], ["fetch", `Bearer ${guarded.token}`]);
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "provenance.json" }).click()]);
      assert.equal(download.suggestedFilename(), "provenance.json");
      assert.equal(await page.getByText(guarded.token).count(), 0);
      await page.reload();
      await drawn(page);
    }, { url: guarded.url, noisy: true });
  } finally {
    await guarded.stop();
  }
});

test("the keyboard alone is enough", () => visit(async page => {
  const focused = what => page.evaluate(what => document.activeElement.matches(what), what);
  const tabTo = async what => {
    for (let i = 0; i < 60; i++) {
      if (await focused(what)) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`60 tabs do not lead to ${what}`);
  };
  await page.getByLabel("Seed").waitFor();
  await tabTo("#file");
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Space")]);
  await chooser.setFiles(sample("woman-red-curls.png"));
  await page.locator("#beliefs .top").filter({ hasText: "curly" }).waitFor();
  await tabTo("input[value=orc]");
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement.parentElement).outlineStyle), "none");
  await page.keyboard.press("Space");
  await tabTo("#count");
  await page.keyboard.type("4");
  await tabTo("#steps");
  await page.keyboard.type("20");
  await page.keyboard.press("Enter");
  await drawn(page);
  await page.locator(".tile:enabled").first().waitFor();
  await tabTo(".tile");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  assert.ok(await focused(".tile"));
}));

for (const colorScheme of ["light", "dark"])
  test(`every text can be read, ${colorScheme}`, () => visit(async page => {
    await page.getByLabel(/Choose an image/).setInputFiles(sample("orc-white-beard.png"));
    await page.locator("#beliefs .top").first().waitFor();
    await chip(page, "sex", "male").check();
    await page.getByRole("checkbox", { name: "not: exclude the chosen values of sex", exact: true }).check();
    await drawOrcs(page, 4);
    assert.deepEqual(await faint(page), []);
  }, { colorScheme }));

for (const width of [400, 1400])
  test(`nothing sticks out or jumps at ${width} pixels`, () => visit(async page => {
    await page.getByLabel("Seed").waitFor();
    await page.getByLabel(/Choose an image/).setInputFiles(sample("orc-white-beard.png"));
    await page.locator("#beliefs .top").first().waitFor();
    await drawOrcs(page);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    assert.deepEqual((await page.evaluate(() => window.shifts)).filter(shift => shift > 0.005), []);
  }, { viewport: { width, height: 900 }, slow: true }));
