/** A report or a run as a file: the same pages, with a plainer frame, over answers that lie in the file itself. */

import { render } from "preact";
import "./tokens.css";
import "./page.css";
import { contents } from "./embedded";
import { Report } from "./pages/reports/report";
import { Run } from "./pages/run";
import { href, parse, place } from "./router";
import { theme, toggleTheme } from "./state";
import { Logo } from "./ui/marks";
import { useKeys, useUndo } from "./ui/shell";
import { Toast } from "./ui/toast";

function File() {
  useUndo();
  useKeys({ t: toggleTheme });
  const [, project = "", section, id = "", tab = "charts"] = place.value.path;
  return (
    <>
      <header class="top">
        <span class="brand">
          <Logo />
          torchtrack
        </span>
        <span class="made">
          As of {new Date(contents?.made ?? "").toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}. {contents?.note}
        </span>
        <button type="button" onClick={() => print()}>Print</button>
        <button type="button" class="plain" onClick={toggleTheme} aria-label={`to the ${theme.value === "dark" ? "light" : "dark"} theme`}>
          {theme.value === "dark" ? "☾" : "☀"}
        </button>
      </header>
      <main>{section === "reports" ? <Report project={project} id={id} /> : <Run key={id} project={project} uid={id} tab={tab} />}</main>
      <Toast />
    </>
  );
}

const room = document.getElementById("app");
if (place.value.path.length === 0 && contents) place.value = parse(href(contents.place));
if (room) render(<File />, room);
