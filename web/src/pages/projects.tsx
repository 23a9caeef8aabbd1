/** All projects of this server, the latest first; before there is one, how to make one. */

import { get, useAnswer } from "../api";
import { ago } from "../format";
import type { Project } from "../model";
import { href } from "../router";
import { news } from "../state";
import { Answered, Empty } from "../ui/notices";

const SNIPPET = `import torchtrack

run = torchtrack.init(project="first", config={"lr": 3e-4})
run.watch(model)
run.log({"loss": loss})`;

export function Projects() {
  const answer = useAnswer(`projects ${news.value}`, (signal) => get<Project[]>("projects", signal));
  return (
    <div class="page">
      <h1>Projects</h1>
      <Answered answer={answer.value}>
        {(projects) => (projects.length ? <Table projects={projects} /> : <FirstRun />)}
      </Answered>
    </div>
  );
}

function Table({ projects }: { projects: Project[] }) {
  return (
    <div class="card">
      <table class="plain-table">
        <thead>
          <tr>
            <th scope="col">Project</th>
            <th scope="col" class="num">Runs</th>
            <th scope="col" class="num">Running</th>
            <th scope="col" class="num">Failed</th>
            <th scope="col" class="num">Newest run</th>
          </tr>
        </thead>
        <tbody>
          {projects.map((project) => (
            <tr key={project.project}>
              <td>
                <a class="strong" href={href(["p", project.project])}>
                  {project.project}
                </a>
              </td>
              <td class="num">{project.runs}</td>
              <td class={project.running ? "num tone-accent" : "num quiet"}>{project.running}</td>
              <td class={project.failed ? "num tone-crit" : "num quiet"}>{project.failed}</td>
              <td class="num quiet">{ago(project.newest)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function FirstRun() {
  return (
    <Empty title="No run yet">
      <p>Three lines in a training script make one. It shows up here while it trains; nothing has to be reloaded.</p>
      <pre>
        <code>{SNIPPET}</code>
      </pre>
      <p class="quiet">
        Without an edit: <code>torchtrack launch -- torchrun --nproc-per-node=2 train.py</code>
      </p>
    </Empty>
  );
}
