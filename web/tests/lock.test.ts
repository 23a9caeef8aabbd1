import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

const lock = readFileSync(new URL("../package-lock.json", import.meta.url), "utf8");

test("the lock file lists the bundler of every platform, and no registry", () => {
  const platforms = new Set(lock.match(/node_modules\/@rolldown\/binding-[a-z0-9-]+/g));
  expect(platforms.size).toBeGreaterThanOrEqual(14);
  expect(lock).not.toContain('"resolved"');
});
