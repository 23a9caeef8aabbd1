import { render } from "preact";
import "./tokens.css";
import "./page.css";
import { shut } from "./api";
import { Alerts } from "./pages/alerts";
import { Compare } from "./pages/compare";
import { Projects } from "./pages/projects";
import { Run } from "./pages/run";
import { Runs } from "./pages/runs";
import { Settings } from "./pages/settings";
import { SignIn } from "./pages/signin";
import { Workspace } from "./pages/workspace";
import { href, parse, place } from "./router";
import { enter } from "./session";
import { followServer } from "./state";
import { later } from "./ui/later";
import { Empty } from "./ui/notices";
import { Shell } from "./ui/shell";

const Reports = later("reports", async () => (await import("./pages/reports")).Reports);
const Report = later("report", async () => (await import("./pages/reports/report")).Report);

function App() {
  if (shut.value) return <SignIn />;
  return (
    <Shell>
      <Page />
    </Shell>
  );
}

function Page() {
  const [kind, project, section, uid, tab] = place.value.path;
  if (kind === undefined) return <Projects />;
  if (kind === "settings") return <Settings />;
  if (kind === "p" && project && section === "alerts") return <Alerts key={project} project={project} />;
  if (kind === "p" && project && section === "r" && uid) return <Run key={uid} project={project} uid={uid} tab={tab ?? "charts"} />;
  if (kind === "p" && project && section === "reports" && uid) return <Report key={uid} project={project} id={uid} />;
  if (kind === "p" && project && section === "reports") return <Reports key={project} project={project} />;
  if (kind === "p" && project && section === "runs") return <Runs key={project} project={project} />;
  if (kind === "p" && project && section === "compare") return <Compare project={project} />;
  if (kind === "p" && project && section === undefined) return <Workspace key={project} project={project} />;
  return (
    <Empty title="There is no such page">
      <a href={href([])}>All projects</a>
    </Empty>
  );
}

async function begin(): Promise<void> {
  await exchangeToken();
  await enter().catch(() => undefined); // a server that does not answer is for the pages to tell
  followServer();
  const room = document.getElementById("app");
  if (room) render(<App />, room);
}

/** The address that `torchtrack ui` prints carries the token behind the #: it becomes a cookie and leaves the address. */
async function exchangeToken(): Promise<void> {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  await fetch("api/v1/session", { method: "POST", headers: { authorization: `Bearer ${token}` } });
  history.replaceState(null, "", href([]));
  place.value = parse(location.hash);
}

void begin();
