import { defineConfig } from "vite";

const server = process.env["TORCHTRACK_URL"] ?? "http://127.0.0.1:8237";
const served = "../torchtrack/server/_web";

/** The page, or with `--mode file` the one script and the one style that reports and runs take along as files. */
export default defineConfig(({ mode }) => ({
  base: "./", // the page works under any path prefix
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: mode === "file" ? `${served}/file` : served,
    emptyOutDir: true,
    target: "es2022",
    license: true,
    modulePreload: { polyfill: false },
    ...(mode === "file" ? oneFile : {}),
  },
  ...(mode === "file" ? { publicDir: false as const } : {}),
  server: { proxy: { "/api": server } },
}));

const oneFile = {
  cssCodeSplit: false,
  rolldownOptions: {
    input: "src/file.tsx",
    output: { codeSplitting: false, entryFileNames: "file.js", assetFileNames: "file.[ext]" },
  },
};
