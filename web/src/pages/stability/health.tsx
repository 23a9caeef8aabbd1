/** The run in six numbers. */

import { number } from "../../format";
import type { Finding, RunAnswer } from "../../model";

type Tone = "" | "crit" | "warn";

interface Figure {
  name: string;
  value: string;
  tone: Tone;
  title: string;
}

export function Health({ run, findings }: { run: RunAnswer; findings: Finding[] | undefined }) {
  return (
    <div class="vitals" role="group" aria-label="health">
      {figures(run, findings).map(({ name, value, tone, title }) => (
        <div key={name} class={tone ? `card vital on-${tone}` : "card vital"} title={title}>
          <span>{name}</span>
          <strong class={tone ? `tone-${tone}` : ""}>{value}</strong>
        </div>
      ))}
    </div>
  );
}

function figures({ summary }: Pick<RunAnswer, "summary">, findings: Finding[] | undefined): Figure[] {
  const of = (severity: string) => (findings ?? []).filter((finding) => finding.severity === severity).length;
  const bad = (findings ?? []).filter((finding) => finding.rule === "non_finite");
  const value = (name: string) => (typeof summary[name] === "number" ? summary[name] : null);
  const ratio = (name: string, over: string) => (value(name) === null || !value(over) ? null : (value(name) ?? 0) / (value(over) ?? 1));
  const shown: (Figure | null)[] = [
    health(findings === undefined ? null : of("critical"), of("warning")),
    figure("Gradient norm", summary["watch/grad_norm"], "the last one, before clipping"),
    clipped(value("watch/clip_coef")),
    figure("Weight norm", summary["watch/param_norm"], "the last one"),
    ratioFigure(ratio("watch/grad_norm", "watch/param_norm")),
    { name: "Not finite", value: bad.length ? `since step ${number(Math.min(...bad.map((one) => one.first_step)))}` : findings === undefined ? "…" : "never", tone: bad.length ? "crit" : "", title: "the first step at which something was NaN or infinite" },
  ];
  return shown.filter((each) => each !== null);
}

function health(critical: number | null, warnings: number): Figure {
  const title = "what the stability rules found";
  if (critical === null) return { name: "Health", value: "…", tone: "", title };
  if (critical > 0) return { name: "Health", value: `${critical} critical`, tone: "crit", title };
  return { name: "Health", value: warnings ? `${warnings} warning${warnings > 1 ? "s" : ""}` : "well", tone: warnings ? "warn" : "", title };
}

/** In answers null is a number that is not finite. */
function figure(name: string, value: unknown, title: string): Figure | null {
  if (value === null) return { name, value: "not finite", tone: "crit", title };
  return typeof value === "number" ? { name, value: number(value), tone: "", title } : null;
}

function clipped(coefficient: number | null): Figure | null {
  if (coefficient === null) return null;
  const title = "what the last gradients were multiplied by; 1 means that they were not clipped";
  return { name: "Clip coefficient", value: number(coefficient), tone: coefficient < 0.1 ? "warn" : "", title };
}

function ratioFigure(value: number | null): Figure | null {
  return value === null ? null : figure("Gradient / weight", value, "their last norms");
}
