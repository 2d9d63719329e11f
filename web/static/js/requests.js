// Requests by scripts: every one that changes something brings the page's token.
import { toast } from "./toasts.js";

export function csrfToken() {
  return document.querySelector("meta[name=csrf-token]")?.content ?? "";
}

// fetch() for a path of this site. Refusals of ours are thrown as Error, with `code` and `status`.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  headers.set("Accept", headers.get("Accept") ?? "application/json");
  if (!["GET", "HEAD"].includes(options.method ?? "GET")) headers.set("X-CSRF-Token", csrfToken());
  const answer = await fetch(path, { ...options, headers, credentials: "same-origin" });
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
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
