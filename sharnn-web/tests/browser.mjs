// The page in a real browser: every feature once, a large file, a broken one, many keystrokes.
//
//     npm install playwright-core        # anywhere: NODE_PATH or the directory above
//     node sharnn-web/tests/browser.mjs target/sharnn.html [--browser /usr/bin/chromium] [--program target/release/sharnn] [--model FILE] [--shots DIR] [--keys 60000]
//     node sharnn-web/tests/browser.mjs target/sharnn.html --speed [--program target/release/sharnn]
//
// With --program a text that the page compresses is compared with what the program makes of it, with the model in --model. With --speed bytes a
// second are measured, of both bundled models, in place of the tests, and with --program compared with what the program does on one thread.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { pathToFileURL } from "node:url";
import { createRequire } from "node:module";

const { chromium } = createRequire(path.resolve("package.json"))("playwright-core");
const { values: options, positionals: [page_file] } = parseArgs({
  allowPositionals: true,
  options: { browser: { type: "string", default: "/usr/bin/chromium" }, program: { type: "string" }, model: { type: "string" }, shots: { type: "string" }, keys: { type: "string", default: "60000" }, speed: { type: "boolean", default: false } },
});

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "sharnn-web-"));
const browser = await chromium.launch({ executablePath: options.browser, args: ["--no-sandbox", "--js-flags=--expose-gc", "--enable-precise-memory-info"] });
const context = await browser.newContext({ acceptDownloads: true, offline: true, viewport: { width: 1000, height: 1200 } });
const page = await context.newPage();
const failures = [];
page.on("pageerror", (error) => failures.push(error.message));
page.on("console", (message) => { if (message.type() === "error") failures.push(message.text()); });

const text_of = (id) => page.textContent(`#${id}`);
const said = (pattern, timeout = 120000) => page.waitForFunction(([source]) => new RegExp(source).test(document.getElementById("said").textContent), [pattern.source], { timeout });
async function check(name, work) {
  const start = Date.now();
  await work();
  console.log(`ok  ${name} (${Date.now() - start} ms)`);
}
const shot = async (name) => { if (options.shots) await page.screenshot({ path: path.join(options.shots, `${name}.png`), fullPage: true }); };
/** Bits a byte that the page shows once they are those of a text of so many bytes. */
async function score(size) {
  await page.waitForFunction((size) => document.getElementById("score").textContent.endsWith(size), size, { timeout: 120000 });
  return parseFloat(await text_of("score"));
}
const finish = async () => {
  await browser.close();
  fs.rmSync(scratch, { recursive: true });
  assert.deepEqual(failures, [], "nothing failed unseen");
};
const open = async (id, name, content) => {
  const file = path.join(scratch, name);
  fs.writeFileSync(file, content);
  await page.setInputFiles(`#${id}`, file);
};

await check("it is painted, and a model is there", async () => {
  await page.goto(pathToFileURL(page_file).href);
  const paint = await page.evaluate(() => new Promise((done, fail) => {
    setTimeout(() => fail(new Error("nothing was painted in 30 s")), 30000);
    new PerformanceObserver((list) => list.getEntriesByName("first-contentful-paint").forEach((entry) => done(entry.startTime))).observe({ type: "paint", buffered: true });
  }));
  await said(/^Ready/);
  assert.match(await text_of("model"), /blocks/);
  console.log(`    first paint after ${paint.toFixed(0)} ms`);
});

if (options.speed) {
  for (const [model, file] of [["bundled-small", "enwik8-small"], ["bundled", "enwik8"]]) {
    const weights = fs.readFileSync(new URL(`../../models/${file}.safetensors`, import.meta.url), "base64");
    for (const [format, index] of [["f32", 0], ["int8", 2], ["exact", 3]]) {
      await page.evaluate(({ weights, format }) => ask("load", { weights: Uint8Array.from(atob(weights), (c) => c.charCodeAt(0)), format }), { weights, format: index });
      // In turn, and the best of each: what else the machine does slows down either.
      const best = { page: 0, program: 0 };
      for (let round = 0; round < 3; round++) {
        // Random bytes, which is what the program measures itself with.
        const { rate } = await page.evaluate(() => ask("bench", { bytes: crypto.getRandomValues(new Uint8Array(400)), passes: 5 }));
        best.page = Math.max(best.page, rate);
        if (!options.program) continue;
        const args = ["bench", "--model", model, "--mode", "decode", "--memory", "128", "--dtype", format, "--threads", "1", "--json"];
        best.program = Math.max(best.program, JSON.parse(execFileSync(options.program, args, { encoding: "utf8" })).tokens_per_s);
      }
      const compared = options.program ? `, the program ${best.program.toFixed(0)}: ${(best.page / best.program).toFixed(2)} of it` : "";
      console.log(`${model} ${format}: ${best.page.toFixed(0)} bytes/s${compared}`);
    }
  }
  await finish();
  process.exit();
}

await check("what is typed is coloured", async () => {
  await page.fill("#text", "The city of Paris is the capital of France.");
  assert((await score("43 bytes")) > 0);
  await page.type("#text", " Zq");
  await score("46 bytes");
  const warmth = await page.$$eval("#view span", (spans) => spans.map((span) => Number(span.style.getPropertyValue("--s"))));
  assert(warmth.length === 46 && warmth.at(-1) > warmth[5], `${warmth}`);
  await page.fill("#text", "Ελλάδα, 日本, 🙂");
  await score("26 bytes");
  assert.equal((await page.$$("#view span")).length, 13);
});

await check("a character is explained, by pointer and by keyboard", async () => {
  await page.fill("#text", "[[Paris]] is in [[France]], and [[Par");
  await score("37 bytes");
  await page.hover("#view span:nth-child(36)");
  await page.waitForSelector("#panel .bar");
  assert.equal((await page.$$("#panel .bar")).length, 8);
  assert((await page.$$("#view span.looked")).length > 0, "nothing is underlined");
  await page.focus("#view");
  await page.keyboard.press("Home");
  await page.waitForFunction(() => document.getElementById("panel").textContent.startsWith("“[”"));
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction(() => document.getElementById("panel").textContent.startsWith("“P”"));
  await shot("explained");
});

await check("what was read is learned from", async () => {
  const text = "node7 accepted a connection from 10.0.0.7\n".repeat(20);
  await page.fill("#text", text);
  const without = await score("840 bytes");
  await page.check("#adapt");
  await page.waitForFunction(() => document.getElementById("score").textContent.includes("learning"));
  const adaptive = parseFloat(await text_of("score"));
  assert(adaptive < 0.7 * without, `${adaptive} of ${without}`);
  assert.match(await text_of("score"), /gzip \d/);
  await page.uncheck("#adapt");
});

await check("text is written, and stopped", async () => {
  await page.fill("#text", "The history of ");
  await score("15 bytes");
  await page.click("#write");
  await page.waitForFunction(() => new TextEncoder().encode(document.getElementById("text").value).length >= 315, null, { timeout: 120000 });
  assert((await page.inputValue("#text")).startsWith("The history of "));
  await said(/^Ready/);
  await page.fill("#text", "The history of ");
  await page.evaluate(() => ["write", "stop"].forEach((id) => document.getElementById(id).click()));
  await page.waitForFunction(() => document.getElementById("stop").disabled);
  assert((await page.inputValue("#text")).length < 300, "it was not stopped");
});

await check("the oddest line of a log is found", async () => {
  const lines = Array.from({ length: 300 }, (_, i) => `2031-05-01 10:0${i % 10} node${i % 4} job ${i} took ${(i * 37) % 90} ms`);
  lines[211] = "!! kernel: segfault at 7f3a ip 00000 in libxq";
  await page.check("#adapt");
  await open("open", "today.log", lines.join("\n"));
  await page.click("#lines");
  await page.waitForSelector("#oddest tbody tr");
  const rows = await page.$$eval("#oddest tbody tr", (rows) => rows.map((row) => Number(row.cells[0].textContent)));
  assert(rows.slice(0, 3).includes(212), `${rows}`);
  await shot("lines");
  await page.uncheck("#adapt");
});

await check("a file is made smaller and restored, in the program's bytes", async () => {
  const text = Array.from({ length: 400 }, (_, i) => `the ${i % 7} times table: ${i} and ${i * (i % 7)}\n`).join("");
  await open("open", "tables.txt", text);
  await score(`${(text.length / 1000).toFixed(0)} kB`);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#compress")]);
  const small = path.join(scratch, "small.sharn");
  await download.saveAs(small);
  assert(fs.statSync(small).size < text.length / 2);
  if (options.program) {
    const [file, own] = [path.join(scratch, "same.txt"), path.join(scratch, "own.sharn")];
    fs.writeFileSync(file, text);
    execFileSync(options.program, ["compress", file, "--to", own, "--model", options.model, "--lanes", "16"]);
    assert(fs.readFileSync(own).equals(fs.readFileSync(small)), "the program makes other bytes");
  }
  const [restored] = await Promise.all([page.waitForEvent("download"), page.setInputFiles("#restore", small)]);
  await restored.saveAs(path.join(scratch, "back"));
  assert.equal(fs.readFileSync(path.join(scratch, "back"), "utf8"), text);
  const broken = fs.readFileSync(small);
  broken[broken.length >> 1] ^= 1;
  await open("restore", "broken.sharn", broken);
  await said(/^Block 0 is damaged/);
  await open("restore", "other.sharn", "no such file");
  await said(/^This is no file of sharnn's codec/);
});

await check("a broken weights file is refused in a sentence, and the model stays", async () => {
  await open("own", "broken.safetensors", Buffer.alloc(3000, 7));
  await said(/^These bytes are no weights of a model/);
  await page.fill("#text", "It goes on.");
  assert((await score("11 bytes")) > 0);
});

await check("a file of 1 MB is read while the page lives", async () => {
  const lines = Array.from({ length: 20000 }, (_, i) => `line ${i} of a file that is long enough, said ${i % 13}`).join("\n").slice(0, 1_000_000).padEnd(1_000_000, "x");
  await open("open", "large.txt", lines);
  await said(/^Reading/);
  // While it is read a click is answered.
  const start = Date.now();
  await page.focus("#temperature");
  assert(Date.now() - start < 1000, "the page is held up");
  await page.fill("#text", "Something else.");
  await score("15 bytes");
});

await check(`${options.keys} keystrokes take no more memory`, async () => {
  // The page's, and the module's, which never shrinks.
  const memory = async () => [
    await page.evaluate(() => { globalThis.gc?.(); return performance.memory.usedJSHeapSize; }),
    await page.workers()[0].evaluate(() => wasm.memory.buffer.byteLength),
  ];
  const n = Number(options.keys);
  const press = (n) => page.evaluate(async (n) => {
    const field = document.getElementById("text");
    for (let i = 0; i < n; i++) {
      field.value = i % 50 ? field.value + "etaoin shrdlu"[i % 13] : "";
      field.dispatchEvent(new Event("input"));
      if (i % 20 === 0) await new Promise((done) => setTimeout(done));
    }
  }, n);
  await press(Math.min(2000, n));
  await page.fill("#text", "A pause.");
  await score("8 bytes");
  const before = await memory();
  await press(n);
  await page.fill("#text", "The end.");
  await page.waitForFunction(() => /8 bytes$/.test(document.getElementById("score").textContent) && document.getElementById("view").textContent === "The end.", null, { timeout: 300000 });
  const after = await memory();
  const parts = ["the page", "the module"];
  console.log(parts.map((part, i) => `    ${part}: ${(before[i] / 1e6).toFixed(1)} MB before, ${(after[i] / 1e6).toFixed(1)} MB after`).join("\n"));
  parts.forEach((part, i) => assert(after[i] < before[i] + 5e6, `${part}: ${before[i]} bytes before, ${after[i]} after`));
});

await check("it fits a phone, light and dark", async () => {
  await page.fill("#text", "The history of [[France]] begins with the history of [[Gaul]].");
  await score("62 bytes");
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width: 375, height: 800 });
    assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it is wider than a phone");
    await shot(`phone-${colorScheme}`);
    await page.setViewportSize({ width: 1000, height: 1200 });
    await shot(`desk-${colorScheme}`);
  }
});

await finish();
console.log("all is as it should be");
