/** Whether whoever looks at a project may write there. */

import { get, useAnswer } from "../../api";
import { inFile } from "../../embedded";
import type { Me } from "../../model";

export function useMayWrite(project: string): boolean {
  const me = useAnswer(inFile ? null : "me", (signal) => get<Me>("me", signal));
  const roles = me.value.data?.roles ?? {};
  return [roles[project], roles["*"]].some((role) => role === "editor" || role === "admin");
}
