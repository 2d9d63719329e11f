// <section data-try-it data-url data-key>: a PUT and a GET to the gateway, as any program does them,
// and what it answered, with how long that took.
function line(className, text) {
  const element = document.createElement("p");
  element.className = className;
  element.textContent = text;
  return element;
}

async function shown(place, method, url, path, key, body) {
  const block = document.createElement("div");
  block.className = "try-it-answer";
  block.append(line("mono", `${method} ${path}`));
  place.append(block);
  const began = performance.now();
  let answer;
  try {
    answer = await fetch(url + path, { method, body, headers: { "X-API-Key": key } });
  } catch {
    block.append(
      line("problem", "The gateway cannot be reached from here: it is down, or it does not allow this page (CORS_ORIGINS)."),
    );
    return false;
  }
  const text = await answer.text();
  const took = Math.max(1, Math.round(performance.now() - began));
  block.append(line(answer.ok ? "try-it-good" : "problem", `${answer.status} in ${took} ms`));
  const content = document.createElement("pre");
  content.textContent = text;
  block.append(content);
  return answer.ok;
}

for (const box of document.querySelectorAll("[data-try-it]")) arm(box);
document.addEventListener("htmx:load", (event) => {
  for (const box of event.detail.elt.querySelectorAll?.("[data-try-it]") ?? []) arm(box);
});

function arm(box) {
  if (box.dataset.armed) return;
  box.dataset.armed = "yes";
  const form = box.querySelector("form");
  const [name, value] = form.querySelectorAll("input");
  const button = form.querySelector("button");
  const answers = box.querySelector("[data-answers]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    answers.replaceChildren();
    const { url, key } = box.dataset;
    const path = `/v1/kv/${encodeURIComponent(name.value)}`;
    if (await shown(answers, "PUT", url, path, key, value.value)) {
      await shown(answers, "GET", url, path, key);
    }
    button.disabled = false;
  });
  button.disabled = false;
}
