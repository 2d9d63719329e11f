// Requests by scripts: every one that changes something brings the page's token.
import { toast } from "./toasts.js";

export function csrfToken() {
  return document.querySelector("meta[name=csrf-token]")?.content ?? "";
}

// fetch() for a path of this site. Refusals of ours are thrown as Error, with `code` and `status`.
// Nobody is led away by them: what somebody has typed is on this page alone.
export async function ask(path, options = {}) {
  try {
    return await once(path, options);
  } catch (error) {
    // Whoever has logged in again, in another tab, has other tokens.
    if (error.code !== "csrf" || !(await renewToken())) throw error;
    return once(path, options);
  }
}

async function once(path, options) {
  const headers = new Headers(options.headers);
  headers.set("Accept", headers.get("Accept") ?? "application/json");
  if (!["GET", "HEAD"].includes(options.method ?? "GET")) headers.set("X-CSRF-Token", csrfToken());
  const answer = await fetch(path, { ...options, headers, credentials: "same-origin" });
  document.getElementById(askedToLogIn)?.remove();
  if (answer.status === 401) askToLogIn();
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

// False if this page is of another account than the session that there is now.
async function renewToken() {
  const told = await (await once("/console/session", {})).json();
  if (String(told.account) !== document.querySelector("meta[name=account]")?.content) return false;
  document.querySelector("meta[name=csrf-token]").content = told.token;
  return true;
}

const askedToLogIn = "session-ended";

function askToLogIn() {
  const link = document.createElement("a");
  link.href = "/login";
  link.target = "_blank";
  link.textContent = "Log in in another tab";
  const shown = toast("Your session has ended. Nothing on this page is lost. ", "bad", { stays: true });
  shown.id = askedToLogIn;
  shown.querySelector("p").append(link, ", come back, and do it again here.");
}

export async function refusal(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // It is not one of our problem documents.
  }
  const error = new Error(problem.detail || problem.title || `The answer was ${answer.status}`);
  error.code = problem.code;
  error.status = answer.status;
  return error;
}

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRF-Token"] = csrfToken();
});

// No answer came at all. Refusals bring their own words (templates/errors/toast.html).
document.addEventListener("htmx:sendError", () => {
  toast("The server cannot be reached. Are you online?", "bad");
});
document.addEventListener("htmx:timeout", () => {
  toast("The server has not answered in time. Try again.", "bad");
});
