import { defineConfig } from "vite";

const server = process.env["TORCHTRACK_URL"] ?? "http://127.0.0.1:8237";

export default defineConfig({
  base: "./", // the page works under any path prefix
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../torchtrack/server/_web",
    emptyOutDir: true,
    target: "es2022",
    license: true,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": server } },
});
